"""Learning on a stream of questions: does feedback help, and does useless feedback do no harm?

    python benchmarks/learning.py --data PATH [--encoder local|minilm] [--feedback all,random,...] [--seeds 3]

banking77: 77 articles (the intents' names) with equal prior scores, 7,655 questions in random order, the top 5 are
shown; feedback names the right article when it is among them, unless the kind of feedback says otherwise. Printed:
the share of questions whose first article is right, before any learning (cold) and as the stream goes by; every
question is ranked before its feedback is given.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from neuralcache_plugins import Reranker, RerankSettings
from neuralcache_plugins.encoders import LocalEncoder

SHOWN = 5
KINDS = ("all", "sparse", "random", "wrong", "hostile", "push", "clicks", "drift", "none")


class Stream:
    """One data set in one encoder's vectors."""

    def __init__(self, folder: Path, encoder: str) -> None:
        with gzip.open(folder / "utterances.jsonl.gz", "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        names = json.loads((folder / "intents.json").read_text(encoding="utf-8"))
        place = {name: index for index, name in enumerate(names)}
        self.questions = [row["text"] for row in rows]
        self.right = np.array([place[row["intent"]] for row in rows])
        self.articles = [name.replace("_", " ") for name in names]
        self.ids = names
        if encoder == "local":
            local = LocalEncoder()
            self.asked, self.rows = local.embed_documents(self.questions), local.embed_documents(self.articles)
        else:
            self.asked = np.load(folder / "utterances.minilm.f16.npy").astype(np.float32)
            self.rows = np.load(folder / "intents.minilm.f16.npy").astype(np.float32)


class Judge:
    """Says which of the shown articles to reward: the right one, or what a noisy or hostile user would."""

    def __init__(self, kind: str, stream: Stream, size: int, rng: np.random.Generator) -> None:
        self.kind, self.rng = kind, rng
        self.swapped = _nearest_swaps(stream.rows, rng) if kind == "drift" else np.arange(len(stream.ids))
        self.half = size // 2
        self.pushed = int(rng.integers(len(stream.ids)))

    def right(self, step: int, article: int) -> int:
        return int(self.swapped[article]) if step >= self.half else article

    def rewarded(self, shown: list[int], right: int) -> int | None:
        honest = right if right in shown else None
        wrong = [article for article in shown if article != right]
        chance = self.rng.random
        match self.kind:
            case "none":
                return None
            case "random":
                return int(self.rng.choice(shown))
            case "wrong":
                return int(self.rng.choice(wrong))
            case "hostile":
                return int(self.rng.choice(wrong)) if chance() < 0.3 else honest
            case "push":
                return (self.pushed if self.pushed in shown else None) if chance() < 0.1 else honest
            case "sparse":
                if chance() >= 0.2:
                    return None
                return int(self.rng.choice(wrong)) if chance() < 0.2 else honest
            case "clicks":
                return honest if honest is not None and chance() < 1 / (shown.index(honest) + 1) else None
            case _:
                return honest


def run(stream: Stream, kind: str, seed: int, limit: int | None) -> dict[str, float]:
    """Return the figures of one pass over the stream."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(stream.questions))[:limit]
    judge = Judge(kind, stream, len(order), rng)
    first, cold, stolen = (np.zeros(len(order), dtype=bool) for _ in range(3))
    started = time.process_time()
    frozen = RerankSettings(learning=False)
    with Reranker(store="memory://") as reranker, Reranker(store="memory://", settings=frozen) as beside:
        for step, index in enumerate(order):
            asked = {"query_vector": stream.asked[index], "vectors": stream.rows, "ids": stream.ids,
                     "prior_scores": np.ones(len(stream.ids)), "top_n": SHOWN}
            ranking = reranker.rerank(stream.questions[index], stream.articles, **asked)
            right = judge.right(step, int(stream.right[index]))
            shown = ranking.positions.tolist()
            first[step] = shown[0] == right
            cold[step] = beside.rerank(stream.questions[index], stream.articles, **asked).positions[0] == right
            stolen[step] = cold[step] and shown[0] == judge.pushed != right
            rewarded = judge.rewarded(shown, right)
            if rewarded is not None:
                reranker.feedback(ranking, helpful=[rewarded])
        trust = next(iter(reranker.stats().namespace.trust.values()), 0.0)
    tail = slice(-2000, None)
    half = len(order) // 2
    return {
        "cold": cold[tail].mean(),
        "last 2000": first[tail].mean(),
        "all": first.mean(),
        "after swap": first[half + 1500 : half + 2500].mean(),
        "stolen": stolen.mean(),
        "trust": trust,
        "seconds": time.process_time() - started,
    }


def _nearest_swaps(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Let about half of the articles swap meaning with their nearest one."""
    similar = rows @ rows.T
    np.fill_diagonal(similar, -1)
    meaning = np.arange(len(rows))
    taken: set[int] = set()
    for article in rng.permutation(len(rows)).tolist():
        other = int(similar[article].argmax())
        if len(taken) < len(rows) // 2 and not taken & {article, other}:
            meaning[article], meaning[other] = other, article
            taken |= {article, other}
    return meaning


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds banking77/")
    parser.add_argument("--encoder", default="local", help="local, minilm or both")
    parser.add_argument("--feedback", default="all,random", help=f"comma separated, of {', '.join(KINDS)}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=None, help="only so many questions")
    chosen = parser.parse_args()
    kinds = chosen.feedback.split(",")
    if unknown := set(kinds) - set(KINDS):
        parser.error(f"unknown feedback {', '.join(sorted(unknown))}")
    for encoder in ("local", "minilm") if chosen.encoder == "both" else (chosen.encoder,):
        stream = Stream(chosen.data / "banking77", encoder)
        for kind in kinds:
            runs = [run(stream, kind, seed, chosen.limit) for seed in range(chosen.seeds)]
            figures = "  ".join(
                f"{name} {statistics.median(one[name] for one in runs):.3f}"
                f" ({min(one[name] for one in runs):.3f}-{max(one[name] for one in runs):.3f})"
                for name in runs[0]
            )
            print(f"{encoder:7s} {kind:8s} {figures}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
