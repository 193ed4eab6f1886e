"""Judged public sets as streams of questions, for ``benchmarks/learning.py``.

A ``Case`` is one question with its candidates. banking77 has 77 one-line articles with equal scores for every question;
the other sets are retrieved: the 50 passages nearest by the saved MiniLM vectors, with those cosines as prior scores.
``encoder`` chooses whose vectors the reranker gets: "local" (WordLlama, 256-d) or "minilm" (384-d).
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from neuralcache_plugins.core.lexical import TokenStatistics, lexical_scores, token_statistics
from neuralcache_plugins.encoders import LocalEncoder

CANDIDATES = 50
ENCODERS = ("local", "minilm")


@dataclass(eq=False)
class Case:
    """One question: candidates with vectors (n, d) and prior scores (n,), and the grade of each relevant document."""

    query: str
    question: np.ndarray
    ids: Sequence[str]
    texts: Sequence[str]
    rows: np.ndarray
    prior: np.ndarray
    lexical: np.ndarray
    grades: Mapping[str, int]
    cold: np.ndarray | None = None

    def ndcg(self, order: Sequence[str], depth: int = 10) -> float:
        """Return nDCG@depth of an order of ids (Jarvelin & Kekalainen 2002, linear gain)."""
        discount = 1.0 / np.log2(np.arange(2, depth + 2))
        gains = [self.grades.get(name, 0) for name in order[:depth]]
        ideal = sorted(self.grades.values(), reverse=True)[:depth]
        return float(discount[: len(gains)] @ gains) / float(discount[: len(ideal)] @ ideal)


@dataclass(eq=False)
class Banking:
    """77 articles (the intents' names); the right one of a question is its intent."""

    ids: list[str]
    rows: np.ndarray
    cases: list[Case]
    right: np.ndarray


@dataclass(eq=False)
class Turn:
    """One turn of a conversation: the passages that annotators said ``yes`` to, and a case if it is judged."""

    case: Case
    helpful: list[str] = field(default_factory=list)


def banking(data: Path, encoder: str) -> Banking:
    folder = data / "banking77"
    rows = list(_lines(folder / "utterances.jsonl.gz"))
    ids = json.loads((folder / "intents.json").read_text(encoding="utf-8"))
    place = {name: index for index, name in enumerate(ids)}
    articles, questions = [name.replace("_", " ") for name in ids], [row["text"] for row in rows]
    vectors = _vectors(articles, folder / "intents.minilm.f16.npy", encoder)
    asked = _vectors(questions, folder / "utterances.minilm.f16.npy", encoder)
    words = [token_statistics(article) for article in articles]
    cases = [
        Case(text, vector, ids, articles, vectors, np.ones(len(ids)), lexical_scores(token_statistics(text), words),
             {row["intent"]: 1})
        for row, text, vector in zip(rows, questions, asked, strict=True)
    ]
    return Banking(ids, vectors, cases, np.array([place[row["intent"]] for row in rows]))


def squad(data: Path, encoder: str, limit: int | None = None) -> list[tuple[Case, Case]]:
    """Return the questions that exist in two wordings: as written and disfluent, as if spoken."""
    corpus = _Corpus(data / "squad", encoder)
    judged = _judged(data / "squad")
    rows = [row for row in _lines(data / "squad" / "queries.jsonl.gz") if row.get("disfluent")][:limit]
    once = corpus.cases([row["text"] for row in rows], range(len(rows)), "queries", [judged[row["id"]] for row in rows])
    twice = corpus.cases([row["disfluent"] for row in rows], range(len(rows)), "queries_disfluent",
                         [judged[row["id"]] for row in rows])
    return list(zip(once, twice, strict=True))


def scifact(data: Path, encoder: str, limit: int | None = None) -> list[Case]:
    """Return all claims, each with the abstracts that it cites."""
    corpus = _Corpus(data / "scifact", encoder)
    judged = _judged(data / "scifact")
    rows = list(_lines(data / "scifact" / "queries.jsonl.gz"))[:limit]
    return corpus.cases([row["text"] for row in rows], range(len(rows)), "queries", [judged[row["id"]] for row in rows])


def conversations(data: Path, name: str, encoder: str) -> list[list[Turn]]:
    """Return the conversations of an mtrag set, turns in order. Turns without judgements have empty grades."""
    folder = data / name
    corpus, judged, votes = _Corpus(folder, encoder), _judged(folder), _votes(folder)
    rows = [(place, row) for place, row in enumerate(_lines(folder / "queries.jsonl.gz")) if row["source"] == "mtrag"]
    cases = corpus.cases([row["text"] for _, row in rows], [place for place, _ in rows], "queries",
                         [judged.get(row["id"], {}) for _, row in rows])
    talks: dict[str, list[tuple[int, Turn]]] = {}
    for (_, row), case in zip(rows, cases, strict=True):
        talks.setdefault(row["conversation"], []).append((row["turn"], Turn(case, votes.get(row["id"], []))))
    return [[turn for _, turn in sorted(talk, key=lambda one: one[0])] for talk in talks.values()]


class _Corpus:
    """Passages in MiniLM vectors, which find the candidates, and in the encoder's."""

    def __init__(self, folder: Path, encoder: str) -> None:
        rows = list(_lines(folder / "corpus.jsonl.gz"))
        self.folder, self.encoder = folder, encoder
        self.ids = [row["id"] for row in rows]
        self.texts = [_passage(row["title"], row["text"]) for row in rows]
        self.minilm = _saved(folder / "corpus.minilm.f16.npy")
        self.rows = self.minilm if encoder == "minilm" else local_vectors(self.texts)
        self.words: dict[int, TokenStatistics] = {}

    def cases(self, texts: Sequence[str], places: Sequence[int], name: str,
              grades: Sequence[Mapping[str, int]]) -> list[Case]:
        minilm = _saved(self.folder / f"{name}.minilm.f16.npy")[list(places)]
        asked = minilm if self.encoder == "minilm" else local_vectors(texts)
        return [self._case(*one) for one in zip(texts, minilm, asked, grades, strict=True)]

    def _case(self, text: str, minilm: np.ndarray, question: np.ndarray, grades: Mapping[str, int]) -> Case:
        cosines = self.minilm @ minilm
        top = np.argsort(-cosines, kind="stable")[:CANDIDATES]
        words = [self._words(place) for place in top.tolist()]
        return Case(text, question, [self.ids[at] for at in top], [self.texts[at] for at in top], self.rows[top],
                    cosines[top], lexical_scores(token_statistics(text), words), grades)

    def _words(self, place: int) -> TokenStatistics:
        if place not in self.words:
            self.words[place] = token_statistics(self.texts[place])
        return self.words[place]


def _votes(folder: Path) -> dict[str, list[str]]:
    """Return, by turn, the passages whose last (reviewed) vote is yes."""
    found: dict[str, list[str]] = {}
    for row in _lines(folder / "feedback.jsonl.gz"):
        if row["votes"] and row["votes"][-1] == "yes":
            found.setdefault(row["query"], []).append(row["doc"])
    return found


def _judged(folder: Path) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for line in (folder / "qrels.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        question, passage, grade = line.split("\t")
        found.setdefault(question, {})[passage] = int(grade)
    return found


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def _passage(title: str, text: str) -> str:
    return text if not title or text.startswith(title) else f"{title}\n{text}"


def _vectors(texts: Sequence[str], saved: Path, encoder: str) -> np.ndarray:
    return _saved(saved) if encoder == "minilm" else local_vectors(texts)


def _saved(path: Path) -> np.ndarray:
    rows = np.load(path).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def local_vectors(texts: Sequence[str]) -> np.ndarray:
    return np.asarray(_local().embed_documents(list(texts)), dtype=np.float32)


@cache
def _local() -> LocalEncoder:
    return LocalEncoder()
