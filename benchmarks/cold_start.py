"""What the cold order is worth: nDCG@10 of a MiniLM retriever before and after, and banking77 right-first.

::

    python benchmarks/cold_start.py --data ../shared/data

The retriever is the exact cosine of the saved MiniLM vectors, 50 candidates; "dense" is the local WordLlama encoder.
A held-out variant of a set (rewritten, disfluent) is marked with a star and not part of the mean.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import wordllama
from ir_measures import Qrel, ScoredDoc, calc_aggregate, nDCG

from neuralcache_plugins.core.fusion import cold_worth, prior_signal
from neuralcache_plugins.core.lexical import TokenStatistics, lexical_scores, token_statistics
from neuralcache_plugins.settings import RerankSettings

SETS = ("mtrag-clapnq", "mtrag-fiqa", "squad", "scifact")
HELD_OUT = {"mtrag-clapnq": "rewrite", "mtrag-fiqa": "rewrite", "squad": "disfluent"}
CANDIDATES = 50


class Weights(NamedTuple):
    """The two weights of the cold order."""

    dense: float
    lexical: float


@dataclass(frozen=True)
class Corpus:
    """Passages with both kinds of vectors and the statistics of their words."""

    ids: list[str]
    minilm: np.ndarray
    local: np.ndarray
    words: list[TokenStatistics]


@dataclass(frozen=True)
class Questions:
    """Judged questions of one set in one form."""

    name: str
    ids: list[str]
    texts: list[str]
    minilm: np.ndarray
    local: np.ndarray


@dataclass(frozen=True)
class Case:
    """One question and what the retriever found for it, best first."""

    question: str
    found: list[str]
    scores: np.ndarray
    dense: np.ndarray
    lexical: np.ndarray

    def order(self, weights: Weights, *, with_scores: bool) -> np.ndarray:
        """Return the cold order as positions in ``found``."""
        prior = prior_signal(self.scores if with_scores else None, len(self.found))
        worth = cold_worth(prior, self.dense, self.lexical, dense_weight=weights.dense, lexical_weight=weights.lexical)
        return np.argsort(-worth, kind="stable")


def main() -> None:
    """Print both tables."""
    here = Path(__file__).resolve().parent.parent
    defaults = RerankSettings()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=here.parent / "shared" / "data")
    parser.add_argument("--dense-weight", type=float, default=defaults.dense_weight)
    parser.add_argument("--lexical-weight", type=float, default=defaults.lexical_weight)
    options = parser.parse_args()
    if not options.data.is_dir():
        parser.error(f"no folder {options.data}; pass --data")
    weights = Weights(options.dense_weight, options.lexical_weight)
    print(f"weights: dense {weights.dense}, lexical {weights.lexical}")
    print_retrieval(options.data, weights)
    print_banking(options.data, weights)


def print_retrieval(data: Path, weights: Weights) -> None:
    print(f"{'nDCG@10':24}{'queries':>8}{'input':>8}{'scores':>9}{'ranks':>9}")
    gains = []
    for name in SETS:
        corpus, qrels = read_corpus(data / name), read_qrels(data / name)
        for questions in read_questions(data / name, set(qrels)):
            cases = list(retrieve(corpus, questions))
            judged = [Qrel(one, doc, grade) for one in questions.ids for doc, grade in qrels[one].items()]
            before = ndcg(judged, cases, lambda case: np.arange(len(case.found)))
            scored = ndcg(judged, cases, lambda case: case.order(weights, with_scores=True)) - before
            ranked = ndcg(judged, cases, lambda case: case.order(weights, with_scores=False)) - before
            print(f"{questions.name:24}{len(cases):8}{before:8.3f}{scored:+9.4f}{ranked:+9.4f}", flush=True)
            if not questions.name.endswith("*"):
                gains.append((scored, ranked))
    print("{:40}{:+9.4f}{:+9.4f}".format("mean", *np.mean(gains, axis=0)))


def print_banking(data: Path, weights: Weights) -> None:
    """Print how often the right one of 77 one-line labels with equal prior scores comes first."""
    rows = read_jsonl(data / "banking77" / "utterances.jsonl.gz")
    intents = json.loads((data / "banking77" / "intents.json").read_text())
    labels, texts = [intent.replace("_", " ") for intent in intents], [row["text"] for row in rows]
    right = np.array([intents.index(row["intent"]) for row in rows])
    known = [token_statistics(label) for label in labels]
    lexical = [lexical_scores(token_statistics(text), known) for text in texts]
    asked, named = (load(data / "banking77" / f"{kind}.minilm.f16.npy") for kind in ("utterances", "intents"))
    cosines = {"local": embed(texts) @ embed(labels).T, "MiniLM": asked @ named.T}
    print(f"\n{'banking77 right first':24}{'dense':>8}{'cold':>8}{'cold, last 2000':>18}")
    for name, dense in cosines.items():
        first = [cold_first(row, words, weights) for row, words in zip(dense, lexical, strict=True)]
        alone = np.mean(np.nan_to_num(dense, nan=-1.0).argmax(axis=1) == right)
        cold = np.array(first) == right
        print(f"{name:24}{alone:8.3f}{cold.mean():8.3f}{cold[-2000:].mean():18.3f}")


def cold_first(dense: np.ndarray, lexical: np.ndarray, weights: Weights) -> int:
    prior = prior_signal([0.5] * len(dense), len(dense))
    worth = cold_worth(prior, dense, lexical, dense_weight=weights.dense, lexical_weight=weights.lexical)
    return int(np.argmax(worth))


def retrieve(corpus: Corpus, questions: Questions) -> Iterator[Case]:
    for row, question in enumerate(questions.ids):
        cosines = corpus.minilm @ questions.minilm[row]
        top = np.argsort(-cosines, kind="stable")[:CANDIDATES]
        lexical = lexical_scores(token_statistics(questions.texts[row]), [corpus.words[at] for at in top])
        dense = corpus.local[top] @ questions.local[row]
        yield Case(question, [corpus.ids[at] for at in top], cosines[top], dense, lexical)


def ndcg(judged: list[Qrel], cases: Sequence[Case], order: Callable[[Case], np.ndarray]) -> float:
    run = [ScoredDoc(case.question, case.found[at], -float(rank))
           for case in cases for rank, at in enumerate(order(case))]
    return float(calc_aggregate([nDCG @ 10], judged, run)[nDCG @ 10])


def read_corpus(folder: Path) -> Corpus:
    rows = read_jsonl(folder / "corpus.jsonl.gz")
    texts = [passage_text(row["title"], row["text"]) for row in rows]
    words = [token_statistics(text) for text in texts]
    return Corpus([row["id"] for row in rows], load(folder / "corpus.minilm.f16.npy"), embed(texts), words)


def read_questions(folder: Path, judged: set[str]) -> Iterator[Questions]:
    rows = read_jsonl(folder / "queries.jsonl.gz")
    forms = [("text", "queries", "")]
    if folder.name in HELD_OUT:
        form = HELD_OUT[folder.name]
        forms.append((form, f"queries_{form}", f" {form}*"))
    for form, vectors, label in forms:
        keep = [at for at, row in enumerate(rows) if row["id"] in judged and row.get(form)]
        texts = [rows[at][form] for at in keep]
        yield Questions(folder.name + label, [rows[at]["id"] for at in keep], texts,
                        load(folder / f"{vectors}.minilm.f16.npy")[keep], embed(texts))


def read_qrels(folder: Path) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    for line in (folder / "qrels.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        question, passage, grade = line.split("\t")
        qrels.setdefault(question, {})[passage] = int(grade)
    return qrels


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def passage_text(title: str, text: str) -> str:
    return text if not title or text.startswith(title) else f"{title}\n{text}"


def load(path: Path) -> np.ndarray:
    return np.load(path).astype(np.float32)


def embed(texts: list[str]) -> np.ndarray:
    """Return unit rows of the local encoder; an empty text gives NaN, which is no signal."""
    return np.asarray(local_encoder().embed(texts, norm=True), dtype=np.float32)


@cache
def local_encoder() -> Any:
    return wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)


if __name__ == "__main__":
    main()
