"""Public sets as streams of questions with known answers, for ``benchmarks/cache.py``.

banking77: the answer is the intent. squad: every question and its disfluent rewording, the answer is the question's id;
near misses (unanswerable look-alikes) have ids of their own, so at most 38 % of the lookups can hit. nlupp-banking: the
answer is intents and slots together.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from learning_sets import _lines, _saved, local_vectors

from neuralcache_plugins.semantic_cache.features import NEIGHBOURS, Neighbour
from neuralcache_plugins.semantic_cache.parsing import Question, parse

DEPTH = 400
SETS = ("banking77", "squad", "nlupp-banking")


@dataclass(eq=False)
class Stream:
    """Questions with unit vectors (n, d) and answers (n,); ``near`` (n, 400) are the nearest others, nearest first.

    ``private`` hides from the policy which entries share an answer: in squad an answer seen twice never comes again,
    which a policy would learn and no real stream has.
    """

    texts: Sequence[str]
    vectors: np.ndarray
    answers: np.ndarray
    private: bool
    questions: list[Question] = field(init=False)
    near: np.ndarray = field(init=False)
    cosines: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.questions = [parse(text) for text in self.texts]
        depth = min(DEPTH, len(self.texts) - 1)
        found = [self._nearest(start, depth) for start in range(0, len(self.texts), 500)]
        self.near, self.cosines = (np.concatenate(part) for part in zip(*found, strict=True))

    def __len__(self) -> int:
        return len(self.texts)

    def neighbours(self, place: int, inside: np.ndarray, stored: np.ndarray, made: np.ndarray) -> list[Neighbour]:
        """Return the nearest entries among those with ``inside`` (n,); ``stored`` and ``made`` are answers and
        times.
        """
        found = inside[self.near[place]].nonzero()[0][:NEIGHBOURS]
        entries, cosines = self.near[place][found], self.cosines[place][found]
        if len(found) < NEIGHBOURS:
            entries = inside.nonzero()[0]
            cosines = self.vectors[entries] @ self.vectors[place]
            top = np.argsort(-cosines, kind="stable")[:NEIGHBOURS]
            entries, cosines = entries[top], cosines[top]
        return [
            Neighbour(entry, cosine, self.questions[entry], self.key(entry, stored), created_at=float(made[entry]))
            for entry, cosine in zip(entries.tolist(), cosines.tolist(), strict=True)
        ]

    def key(self, entry: int, stored: np.ndarray) -> Hashable:
        return entry if self.private else int(stored[entry])

    def _nearest(self, start: int, depth: int) -> tuple[np.ndarray, np.ndarray]:
        cosines = self.vectors[start:start + 500] @ self.vectors.T
        cosines[np.arange(len(cosines)), np.arange(start, start + len(cosines))] = -2.0
        top = np.argpartition(-cosines, depth - 1, axis=1)[:, :depth]
        values = np.take_along_axis(cosines, top, axis=1)
        order = np.argsort(-values, axis=1, kind="stable")
        return np.take_along_axis(top, order, axis=1), np.take_along_axis(values, order, axis=1)


def stream(data: Path, name: str, encoder: str) -> Stream:
    """Return a set as a stream, with vectors of the local encoder or MiniLM's from the files."""
    texts, answers, saved = {"banking77": _banking, "squad": _squad, "nlupp-banking": _nlupp}[name](data / name)
    vectors = np.concatenate([_saved(path) for path in saved]) if encoder == "minilm" else local_vectors(texts)
    known: dict[Hashable, int] = {}
    numbers = np.array([known.setdefault(answer, len(known)) for answer in answers])
    return Stream(texts, vectors, numbers, private=name == "squad")


_Raw = tuple[list[str], list[Any], list[Path]]


def _banking(folder: Path) -> _Raw:
    rows = list(_lines(folder / "utterances.jsonl.gz"))
    return [row["text"] for row in rows], [row["intent"] for row in rows], [folder / "utterances.minilm.f16.npy"]


def _squad(folder: Path) -> _Raw:
    rows = list(_lines(folder / "queries.jsonl.gz"))
    again = [row for row in rows if row.get("disfluent")]
    texts = [row["text"] for row in rows] + [row["disfluent"] for row in again]
    files = [folder / f"{name}.minilm.f16.npy" for name in ("queries", "queries_disfluent")]
    return texts, [row["id"] for row in (*rows, *again)], files


def _nlupp(folder: Path) -> _Raw:
    rows = list(_lines(folder / "utterances.jsonl.gz"))
    answers = [json.dumps([sorted(row["intents"]), row["slots"]], sort_keys=True) for row in rows]
    return [row["text"] for row in rows], answers, [folder / "utterances.minilm.f16.npy"]
