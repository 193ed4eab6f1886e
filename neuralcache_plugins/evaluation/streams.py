"""Streams: questions in some order, each with the documents that are right for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from neuralcache_plugins.contracts import Encoder, Matrix
from neuralcache_plugins.core.vectors import unit_rows, width_of
from neuralcache_plugins.encoders import LocalEncoder
from neuralcache_plugins.errors import InvalidInputError
from neuralcache_plugins.evaluation.judged import JudgedSet
from neuralcache_plugins.evaluation.runs import Run


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """Questions with their right documents, named by position in ``ids``.

    ``candidates[i]`` are what the retriever hands in for question ``i``, best first, None: all documents for every
    question. ``prior_scores[i]`` are its scores; None: the order counts, or nothing when all documents are candidates.
    Vectors are unit rows, one per question and per document.
    """

    name: str
    questions: tuple[str, ...]
    right: tuple[tuple[int, ...], ...]
    ids: tuple[str, ...]
    texts: tuple[str, ...]
    question_vectors: Matrix
    document_vectors: Matrix
    candidates: tuple[tuple[int, ...], ...] | None = None
    prior_scores: tuple[tuple[float, ...], ...] | None = None

    def __post_init__(self) -> None:
        size, documents = len(self.questions), len(self.ids)
        for name, values, wanted in (
            ("right", self.right, size), ("texts", self.texts, documents),
            ("question_vectors", self.question_vectors, size), ("document_vectors", self.document_vectors, documents),
            ("candidates", self.candidates, size), ("prior_scores", self.prior_scores, size),
        ):
            if values is not None and len(values) != wanted:
                raise InvalidInputError(f"{name} of stream {self.name!r} must have {wanted} entries, got {len(values)}")
        if not size or documents < 2:
            raise InvalidInputError(f"stream {self.name!r} needs questions and at least two documents")
        if len(set(self.ids)) != documents:
            raise InvalidInputError(f"stream {self.name!r} repeats document ids")

    def __len__(self) -> int:
        return len(self.questions)

    @classmethod
    def of(
        cls, questions: Sequence[str], right: Sequence[int | Sequence[int]], texts: Sequence[str], *,
        ids: Sequence[str] | None = None, encoder: Encoder | None = None, question_vectors: Any = None,
        document_vectors: Any = None, name: str = "stream",
    ) -> Stream:
        """Make a stream in which every document is a candidate for every question.

        ``right[i]`` is the position in ``texts``, or several. Vectors that are not given come from ``encoder`` (None:
        the local one).
        """
        asked, rows = _encoded(questions, texts, encoder, question_vectors, document_vectors)
        return cls(
            name=name, questions=tuple(questions),
            right=tuple((one,) if isinstance(one, int) else tuple(one) for one in right),
            ids=tuple(ids) if ids is not None else tuple(f"document-{at}" for at in range(len(texts))),
            texts=tuple(texts), question_vectors=asked, document_vectors=rows,
        )

    @classmethod
    def of_judged(
        cls, judged: JudgedSet, run: Run, *, candidates: int = 50, encoder: Encoder | None = None,
        question_vectors: Any = None, document_vectors: Any = None,
    ) -> Stream:
        """Make a stream of a judged set and a first stage's run, see ``lexical_run`` and ``dense_run``.

        Only documents that are a candidate of some question are kept. Vectors belong to ``judged.query_ids`` and
        ``judged.ids``; those not given come from ``encoder`` (None: the local one).
        """
        best = [run.best(query_id, candidates) for query_id in judged.query_ids]
        wanted = {name for found in best for name, _ in found}
        kept = [at for at, name in enumerate(judged.ids) if name in wanted]
        place = {judged.ids[at]: index for index, at in enumerate(kept)}
        if unknown := wanted - place.keys():
            raise InvalidInputError(f"the run names documents that {judged.name!r} lacks: {sorted(unknown)[:3]}")
        texts = [judged.texts[at] for at in kept]
        asked, rows = _encoded(judged.queries, texts, encoder, question_vectors,
                               None if document_vectors is None else np.asarray(document_vectors)[kept])
        grades = [judged.qrels[query_id] for query_id in judged.query_ids]
        return cls(
            name=judged.name, questions=judged.queries,
            right=tuple(tuple(place[name] for name, grade in one.items() if grade > 0 and name in place)
                        for one in grades),
            ids=tuple(judged.ids[at] for at in kept), texts=tuple(texts), question_vectors=asked,
            document_vectors=rows,
            candidates=tuple(tuple(place[name] for name, _ in found) for found in best),
            prior_scores=tuple(tuple(score for _, score in found) for found in best),
        )

    @classmethod
    def synthetic(
        cls, *, questions: int = 2_000, documents: int = 40, width: int = 32, document_noise: float = 1.3,
        question_noise: float = 1.3, seed: int = 0,
    ) -> Stream:
        """Make a stream of random vectors: no text, no encoder, no download.

        Every document has a hidden topic. Its own vector is the topic plus noise of ``document_noise`` times the
        topic's length, so that documents are written in other words than questions are asked in; a question is the
        topic plus ``question_noise``. What feedback can teach is where the topics really are.
        """
        rng = np.random.default_rng(seed)
        topics = _unit(rng.standard_normal((documents, width)))
        rows = _unit(topics + document_noise / np.sqrt(width) * rng.standard_normal((documents, width)))
        right = rng.integers(documents, size=questions)
        asked = _unit(topics[right] + question_noise / np.sqrt(width) * rng.standard_normal((questions, width)))
        return cls.of(
            [f"question{at}" for at in range(questions)], right.tolist(), [f"document{at}" for at in range(documents)],
            question_vectors=asked, document_vectors=rows, name="synthetic",
        )


def _encoded(
    questions: Sequence[str], texts: Sequence[str], encoder: Encoder | None, asked: Any, rows: Any
) -> tuple[Matrix, Matrix]:
    chosen = LocalEncoder() if encoder is None else encoder
    if asked is None:
        many = getattr(chosen, "embed_queries", None)
        asked = many(list(questions)) if many else [chosen.embed_query(text) for text in questions]
    if rows is None:
        rows = chosen.embed_documents(list(texts))
    width = width_of(rows) or 1
    return unit_rows(asked, count=len(questions), width=width)[0], unit_rows(rows, count=len(texts), width=width)[0]


def _unit(rows: Any) -> Matrix:
    scaled: Matrix = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return scaled
