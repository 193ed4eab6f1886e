"""First-stage candidates where no run is at hand: by words, by an encoder, or by vectors already made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from neuralcache_plugins.contracts import Encoder
from neuralcache_plugins.core.lexical import token_statistics
from neuralcache_plugins.core.vectors import unit_rows, width_of
from neuralcache_plugins.encoders import LocalEncoder
from neuralcache_plugins.evaluation.judged import JudgedSet
from neuralcache_plugins.evaluation.runs import Run

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


class Bm25:
    """An inverted index over the words of the package's lexical core.

    ln(1 + (n - df + .5) / (df + .5)) * tf / (tf + k1 (1 - b + b length / mean length)) with k1 = 1.2, b = 0.75:
    Robertson and Zaragoza, Foundations and Trends in Information Retrieval 3 (2009). Building costs
    O(tokens log tokens), a question O(postings of its words + documents).
    """

    def __init__(self, texts: Sequence[str], *, k1: float = 1.2, b: float = 0.75) -> None:
        streams = [np.frombuffer(token_statistics(text).ids, dtype=np.uint32) for text in texts]
        lengths = np.array([len(stream) for stream in streams], dtype=np.float64)
        words = np.concatenate(streams) if streams else np.zeros(0, dtype=np.uint32)
        # one number per (word, document), so that one sort groups the postings of each word
        keys = words.astype(np.uint64) * np.uint64(max(1, len(texts))) + np.repeat(
            np.arange(len(texts), dtype=np.uint64), lengths.astype(np.int64))
        pairs, counts = np.unique(keys, return_counts=True)
        owners = pairs // np.uint64(max(1, len(texts)))
        self._documents = (pairs % np.uint64(max(1, len(texts)))).astype(np.int64)
        self._words, self._starts, sizes = np.unique(owners, return_index=True, return_counts=True)
        self._ends = self._starts + sizes
        self._count = len(texts)
        rarity = np.log1p((len(texts) - sizes + 0.5) / (sizes + 0.5))
        mean = max(float(lengths.mean()), 1.0) if len(texts) else 1.0
        damping = k1 * (1.0 - b + b * lengths[self._documents] / mean)
        self._weights = np.repeat(rarity, sizes) * counts / (counts + damping)

    def scores(self, query: str) -> npt.NDArray[np.float64]:
        """Return one score per text, shape (n,); 0 where no word of the question stands."""
        total = np.zeros(self._count)
        asked, times = np.unique(np.frombuffer(token_statistics(query).ids, dtype=np.uint32), return_counts=True)
        places = self._words.searchsorted(asked).tolist()
        for word, often, at in zip(asked.tolist(), times.tolist(), places, strict=True):
            if at < len(self._words) and self._words[at] == word:
                postings = slice(self._starts[at], self._ends[at])
                total[self._documents[postings]] += often * self._weights[postings]
        return total


def lexical_run(judged: JudgedSet, *, candidates: int = 50, progress: Progress | None = None) -> Run:
    """Return the best candidates of each question by BM25 over the whole corpus, see ``Bm25``."""
    index = Bm25(judged.texts)
    return _run("bm25", judged, lambda at: index.scores(judged.queries[at]), candidates, progress)


def dense_run(
    judged: JudgedSet, encoder: Encoder | None = None, *, candidates: int = 50, progress: Progress | None = None
) -> Run:
    """Return the best candidates of each question by the cosine of an encoder's vectors (None: the local one)."""
    chosen = LocalEncoder() if encoder is None else encoder
    many = getattr(chosen, "embed_queries", None)
    asked = many(list(judged.queries)) if many else [chosen.embed_query(text) for text in judged.queries]
    return vector_run(judged, document_vectors=chosen.embed_documents(list(judged.texts)), query_vectors=asked,
                      candidates=candidates, name="dense", progress=progress)


def vector_run(
    judged: JudgedSet, *, document_vectors: Any, query_vectors: Any, candidates: int = 50, name: str = "dense",
    progress: Progress | None = None,
) -> Run:
    """Return the best candidates by cosine; rows belong to ``judged.ids`` and ``judged.query_ids``, one for one."""
    width = width_of(document_vectors) or 1
    rows = unit_rows(document_vectors, count=len(judged.ids), width=width)[0]
    asked = unit_rows(query_vectors, count=len(judged), width=width)[0]
    return _run(name, judged, lambda at: rows @ asked[at], candidates, progress)


def run_of(
    first_stage: Any, judged: JudgedSet, *, candidates: int, progress: Progress | None = None
) -> Run:
    """Return the run that ``first_stage`` names: a ``Run``, its path, "bm25", "dense", or an encoder."""
    if isinstance(first_stage, Run):
        return first_stage
    if first_stage in ("bm25", "lexical"):
        return lexical_run(judged, candidates=candidates, progress=progress)
    if first_stage == "dense":
        return dense_run(judged, candidates=candidates, progress=progress)
    if isinstance(first_stage, Encoder):
        return dense_run(judged, first_stage, candidates=candidates, progress=progress)
    return Run.load(first_stage)




def _best(scores: npt.NDArray[Any], count: int) -> list[int]:
    top: list[int] = np.argsort(-scores, kind="stable")[:count].tolist()
    return top


def _run(
    name: str, judged: JudgedSet, scored: Callable[[int], npt.NDArray[Any]], candidates: int, progress: Progress | None
) -> Run:
    found: dict[str, dict[str, float]] = {}
    for at, query_id in enumerate(judged.query_ids):
        scores = scored(at)
        found[query_id] = {judged.ids[place]: float(scores[place]) for place in _best(scores, candidates)}
        if progress is not None:
            progress(at + 1, len(judged))
    return Run(name, found)
