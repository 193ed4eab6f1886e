"""What a call costs: ranking cold and with 20,000 remembered questions, the adapters, telemetry and feedback.

    python benchmarks/rerank.py [--peers FOLDER] [--reps 100]

One thread, CPU time of the calling thread, medians. Everything is a ratio to a floor measured in the same run: an
incremental maximal-marginal-relevance loop in numpy, or a bare SQLite transaction of the same rows. ``--peers`` names
a folder with ``peer_rerank_bench.py``: its cases are then timed in the same process. The functions named ``ours_*``
make one case each, ``(n, dim, seed) -> callable``, and can be handed to such a harness.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import argparse
import gc
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neuralcache_plugins import Reranker, RerankSettings, StoreSettings
from neuralcache_plugins.contracts import FeedbackGiven, RankingServed

DIM, TOP_N, WORDS, TOPICS, REMEMBERED = 384, 10, 120, 12, 20_000
Case = Callable[[], Any]


@dataclass
class Corpus:
    ids: list[str]
    texts: list[str]
    rows: np.ndarray
    query: str
    question: np.ndarray


class Unused:
    """Stands where an encoder goes; every case brings its vectors."""

    fingerprint = "unused"

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        raise AssertionError("the benchmark encodes nothing")

    def embed_query(self, text: str) -> list[float]:
        raise AssertionError("the benchmark encodes nothing")


def corpus(n: int, dim: int = DIM, seed: int = 1) -> Corpus:
    """Clustered unit rows and Zipf-like texts of 120 words."""
    rng, chance = np.random.default_rng(seed), random.Random(seed)
    words = [
        "".join(chance.choice("bcdfglmnprst") + chance.choice("aeiou") for _ in range(chance.choice((2, 3, 4))))
        for _ in range(8000)
    ]
    weight = 1.0 / np.arange(1, len(words) + 1) ** 0.9
    weight /= weight.sum()
    centres = rng.standard_normal((TOPICS, dim))
    label = rng.integers(0, TOPICS, n)
    rows = unit(centres[label] + 0.9 * rng.standard_normal((n, dim)))
    topics = [chance.sample(words, 40) for _ in range(TOPICS)]
    texts = []
    for index in range(n):
        text = [words[one] for one in rng.choice(len(words), WORDS, p=weight)]
        text[::6] = chance.choices(topics[label[index]], k=len(text[::6]))
        texts.append(" ".join(text))
    question = unit(centres[0] + 0.7 * rng.standard_normal(dim))
    return Corpus(
        [f"d{i}" for i in range(n)], texts, rows, "what about " + " ".join(chance.sample(topics[0], 6)), question
    )


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def floor_mmr(n: int, dim: int = DIM, seed: int = 1) -> Case:
    """Return the floor: relevance, then ten picks with a running maximum, one product a pick."""
    given = corpus(n, dim, seed)

    def pick() -> list[int]:
        worth = 0.5 * (given.rows @ given.question)
        nearest = np.full(n, -np.inf, dtype=np.float32)
        picked = [int(worth.argmax())]
        for _ in range(min(TOP_N, n) - 1):
            worth[picked[-1]] = -np.inf
            np.maximum(nearest, given.rows @ given.rows[picked[-1]], out=nearest)
            picked.append(int((worth - 0.5 * nearest).argmax()))
        return picked

    return pick


def ours_rerank(n: int, dim: int = DIM, seed: int = 1) -> Case:
    """Return a ranking of n candidates with vectors, cold memory, in-memory SQLite."""
    given = corpus(n, dim, seed)
    reranker = Reranker(Unused(), store="sqlite:///:memory:", store_settings=StoreSettings(flush_interval_seconds=3600))
    return lambda: reranker.rerank(
        given.query, given.texts, ids=given.ids, query_vector=given.question, vectors=given.rows, top_n=TOP_N
    )


def ours_rerank_20000(n: int, dim: int = DIM, seed: int = 1, *, reranker: Reranker | None = None) -> Case:
    """Return the same with 20,000 remembered questions over 1,500 documents, the candidates among them."""
    known = corpus(max(n, 1500), dim, seed)
    reranker = reranker or filled(known, seed)
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(known.ids), n, replace=False)
    texts, ids = [known.texts[i] for i in chosen], [known.ids[i] for i in chosen]
    rows, question = np.ascontiguousarray(known.rows[chosen]), reranker.subjects[chosen[0]]  # type: ignore[attr-defined]
    return lambda: reranker.rerank(known.query, texts, ids=ids, query_vector=question, vectors=rows, top_n=TOP_N)


def filled(known: Corpus, seed: int, *, remembered: int = REMEMBERED) -> Reranker:
    """Return a reranker that was told 20,000 times which document helped for a question near it."""
    rng = np.random.default_rng(seed)
    settings = StoreSettings(flush_interval_seconds=3600)
    reranker = Reranker(
        Unused(), store="memory://", store_settings=settings, settings=RerankSettings(max_questions=10**6)
    )
    size, dim = known.rows.shape
    subjects = unit(rng.standard_normal((size, dim)))  # what people ask about is not what the texts look like
    for step in range(remembered):
        right = step % size
        others = rng.choice(size, 4, replace=False)
        chosen = [right, *others[others != right].tolist()]
        question = unit(subjects[right] + 0.5 * rng.standard_normal(dim) / np.sqrt(dim))
        ranking = reranker.rerank(
            "q",
            [known.texts[i] for i in chosen],
            ids=[known.ids[i] for i in chosen],
            query_vector=question,
            vectors=known.rows[chosen],
            prior_scores=[1.0] * len(chosen),
        )
        reranker.feedback(ranking, helpful=[0])
    reranker.subjects = subjects  # type: ignore[attr-defined]  # for the case that asks near them
    told = reranker.stats().namespace
    print(f"   remembered {told.remembered_questions:,} questions, trust {max(told.trust.values()):.2f}", flush=True)
    return reranker


def ours_langchain(n: int, dim: int = DIM, seed: int = 1) -> Case:
    """Return the LangChain compressor over the same core, n documents that carry vectors in, ten out."""
    from langchain_core.documents import Document

    from neuralcache_plugins.langchain import NeuralCacheCompressor

    given = corpus(n, dim, seed)
    documents = [Document(id=i, page_content=t) for i, t in zip(given.ids, given.texts, strict=True)]
    compressor = NeuralCacheCompressor.from_reranker(_with_vectors(given), top_n=TOP_N)
    return lambda: compressor.compress_documents(documents, given.query)


def ours_llamaindex(n: int, dim: int = DIM, seed: int = 1) -> Case:
    """Return the LlamaIndex postprocessor over the same core, n nodes in, ten out."""
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

    from neuralcache_plugins.llamaindex import NeuralCachePostprocessor

    given = corpus(n, dim, seed)
    nodes = [NodeWithScore(node=TextNode(id_=i, text=t)) for i, t in zip(given.ids, given.texts, strict=True)]
    processor = NeuralCachePostprocessor.from_reranker(_with_vectors(given), top_n=TOP_N)
    bundle = QueryBundle(given.query)
    return lambda: processor.postprocess_nodes(nodes, query_bundle=bundle)


def ours_core_under_adapters(n: int, dim: int = DIM, seed: int = 1) -> Case:
    """Return what both adapters call: texts whose vectors are in the embedding cache."""
    given = corpus(n, dim, seed)
    reranker = _with_vectors(given)
    return lambda: reranker.rerank(given.query, given.texts, ids=given.ids, top_n=TOP_N)


def _with_vectors(given: Corpus) -> Reranker:
    class Table:
        fingerprint = "table"

        def embed_documents(self, texts: list[str]) -> list[np.ndarray]:
            place = {text: row for text, row in zip(given.texts, given.rows, strict=True)}
            return [place[text] for text in texts]

        def embed_query(self, text: str) -> np.ndarray:
            return given.question

    return Reranker(Table(), store="memory://", store_settings=StoreSettings(flush_interval_seconds=3600))


def cpu_us(case: Case, *, reps: int, warm_up: int = 5) -> float:
    """Return the median CPU time of the calling thread in microseconds."""
    for _ in range(warm_up):
        case()
    gc.collect()
    taken = []
    for _ in range(reps):
        started = time.thread_time_ns()
        case()
        taken.append(time.thread_time_ns() - started)
    return statistics.median(taken) / 1e3


def in_turn(cases: dict[str, Case], *, reps: int, rounds: int = 5) -> dict[str, float]:
    """Return medians of cases timed in turn, so that a machine that slows down slows them all."""
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            taken[name].append(cpu_us(case, reps=max(3, reps // rounds)))
    return {name: statistics.median(values) for name, values in taken.items()}


def show(name: str, value: float, floor: float, limit: str) -> None:
    print(f"{name:48s} {value:10.1f} us  {value / floor:7.2f} x floor   ({limit})", flush=True)


def ranking(reps: int) -> None:
    sizes = (10, 100, 1000)
    cases = {f"floor {n}": floor_mmr(n) for n in sizes} | {f"cold {n}": ours_rerank(n) for n in sizes}
    known = corpus(1500)
    warm = filled(known, 1)
    cases |= {f"warm {n}": ours_rerank_20000(n, reranker=warm) for n in sizes}
    took = in_turn(cases, reps=reps)
    floor = took["floor 100"]
    print(f"floor (MMR, 100 candidates, top 10)              {floor:10.1f} us")
    for n in sizes:
        show(f"rerank, {n} candidates, cold", took[f"cold {n}"], floor, "limit 8 x at 100")
    for n in sizes:
        show(f"rerank, {n} candidates, 20,000 remembered", took[f"warm {n}"], floor, "limit 25 x at 100")
    print(
        f"1,000 candidates over 100: cold {took['cold 1000'] / took['cold 100']:.2f} x, "
        f"remembered {took['warm 1000'] / took['warm 100']:.2f} x (limit 6 x)"
    )
    warm.close()


def adapters(reps: int) -> None:
    took = in_turn(
        {"core": ours_core_under_adapters(100), "langchain": ours_langchain(100), "llamaindex": ours_llamaindex(100)},
        reps=reps,
    )
    for name in ("langchain", "llamaindex"):
        print(f"{name} adapter over the core, 100 in, 10 out      {took[name] - took['core']:10.1f} us  (limit 200)")


def telemetry(reps: int) -> None:
    """Print what recording a ranking costs on the hot path, and feedback beside a bare transaction of its rows."""
    from neuralcache_plugins.telemetry import Recorder

    with tempfile.TemporaryDirectory() as folder:
        given = corpus(100)
        url = f"sqlite:///{folder}/t.db"
        settings = StoreSettings(flush_interval_seconds=3600, buffer_rankings=10**6)
        with Reranker(Unused(), store=url, store_settings=settings) as reranker:
            served = reranker.rerank(
                given.query, given.texts, ids=given.ids, query_vector=given.question, vectors=given.rows, top_n=TOP_N
            )
            recorder = Recorder(reranker.store, flush_interval_seconds=3600, buffer_rankings=10**6)
            cost = cpu_us(lambda: recorder.served(served.served), reps=reps * 10)
            sign = cpu_us(reranker.store.sign, reps=reps * 10)
            recorder.close()
            print(f"telemetry on the hot path: record {cost:.1f} us + sign of the log {sign:.1f} us  (limit 30 us)")
            rankings = [
                reranker.rerank(
                    given.query,
                    given.texts,
                    ids=given.ids,
                    query_vector=given.question,
                    vectors=given.rows,
                    top_n=TOP_N,
                )
                for _ in range(reps * 5 + 20)
            ]
            reranker.flush()
            reranker.stats()
            pool = iter(rankings)
            bare = _bare_feedback(Path(folder) / "t.db")
            top = int(served.positions[0])
            took = in_turn(
                {
                    "feedback": lambda: reranker.feedback(next(pool), helpful=[top]),
                    "append": _appended(reranker, [ranking.served for ranking in rankings]),
                    "bare": bare,
                },
                reps=reps,
            )
            floor = "floor: bare transaction; limit 2 x"
            show("feedback, the whole call", took["feedback"], took["bare"], floor)
            show("feedback, what SQLite does of it", took["append"], took["bare"], floor)


def _appended(reranker: Reranker, rankings: Sequence[RankingServed]) -> Case:
    """Return the store's append of one feedback that is made beforehand: one row, as the bare transaction has."""
    made = iter([
        FeedbackGiven(
            feedback_id=f"feedback-{place}-{ranking.ranking_id}", ranking_id=ranking.ranking_id,
            namespace=ranking.namespace, at=ranking.at, source="user", rewards=((ranking.document_ids[0], 1.0),),
            ranking=ranking, document_vector=ranking.query_vector,
        )
        for place in range(10) for ranking in rankings
    ])
    return lambda: reranker.store.append([next(made)])


def _bare_feedback(path: Path) -> Case:
    """Return one transaction that inserts the row of a feedback event, and nothing else, into a like table."""
    source = sqlite3.connect(path)
    (create,) = source.execute("SELECT sql FROM sqlite_master WHERE name = 'events'").fetchone()
    indexes = [
        sql
        for (sql,) in source.execute(
            "SELECT sql FROM sqlite_master WHERE tbl_name = 'events' AND type = 'index' AND sql IS NOT NULL"
        )
    ]
    columns = [row[1] for row in source.execute("PRAGMA table_info(events)")]
    bare = sqlite3.connect(path.with_name("bare.db"), isolation_level=None)
    bare.execute("PRAGMA journal_mode=WAL")
    bare.execute("PRAGMA synchronous=NORMAL")
    bare.execute(create)
    for sql in indexes:
        bare.execute(sql)
    holes = ", ".join("?" for _ in columns)
    insert = f"INSERT INTO events ({', '.join(columns)}) VALUES ({holes})"
    count = iter(range(10**9))
    row: Sequence[Any] = []

    def run() -> None:
        nonlocal row
        if not row:
            row = source.execute("SELECT * FROM events ORDER BY position DESC LIMIT 1").fetchone()
        values = list(row)
        number = next(count)
        for index, name in enumerate(columns):
            if name == "position":
                values[index] = None
            elif name in ("feedback_id", "ranking_id") and values[index] is not None:
                values[index] = f"{values[index]}-{number}"
        bare.execute("BEGIN IMMEDIATE")
        bare.execute(insert, values)
        bare.execute("COMMIT")

    return run


def peers(folder: Path, reps: int) -> None:
    """Time the peers' cases in this process, beside ours."""
    sys.path.insert(0, str(folder))
    import peer_rerank_bench as bench

    given = bench.make_corpus(100)
    with tempfile.TemporaryDirectory() as scratch:
        ctx = bench.Ctx(given, DIM, scratch)
        reranker = Reranker(Unused(), store="sqlite:///:memory:")
        ours = cpu_us(
            lambda: reranker.rerank(
                given.query, given.texts, ids=given.ids, query_vector=given.q, vectors=given.emb, top_n=TOP_N
            ),
            reps=reps,
        )
        print(f"\npeers, 100 candidates, CPU median relative to our {ours:.0f} us")
        for name in (
            "nc_sqlite_emb_off",
            "nc_memory_emb_off",
            "lc_mmr_k10",
            "lc_embeddings_filter_k10",
            "li_mmr_k10",
            "bm25s_on_the_fly",
            "wordllama_rank",
            "rerankers_noop",
            "floor_mmr_k10",
        ):
            try:
                case = bench.CASES[name][0](ctx)
            except ImportError as error:
                print(f"  {name:28s} not installed ({error.name})")
                continue
            print(f"  {name:28s} {cpu_us(case, reps=5, warm_up=1) / ours:9.2f} x", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, default=None, help="folder with peer_rerank_bench.py")
    parser.add_argument("--reps", type=int, default=100)
    parser.add_argument("--only", default="ranking,adapters,telemetry", help="comma separated parts")
    chosen = parser.parse_args()
    for part in chosen.only.split(","):
        {"ranking": ranking, "adapters": adapters, "telemetry": telemetry}[part](chosen.reps)
    if chosen.peers:
        peers(chosen.peers, chosen.reps)
    return 0


if __name__ == "__main__":
    sys.exit(main())
