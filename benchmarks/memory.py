"""Learned state: how fast feedback is folded, how large the state grows, how soon a process is level again.

    python benchmarks/memory.py [--most 100000] [--documents 2000]

Every feedback comes with its ranking: 5 shown of 2,000 documents, 256-d questions on 4,000 subjects, 80 % of the
feedback right. "catch-up" reads the log from a SQLite file and folds it, as a process does that starts without a
snapshot; "snapshot" starts from one. Exponents are slopes of log cost over log events: 1.0 is linear.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Iterator

import numpy as np

from neuralcache_plugins.contracts import Event, FeedbackGiven, RankingServed
from neuralcache_plugins.memory import LearnedState, Memory
from neuralcache_plugins.memory.snapshots import pack, unpack
from neuralcache_plugins.settings import RerankSettings
from neuralcache_plugins.stores import open_store

SHOWN, WIDTH, SUBJECTS = 5, 256, 4_000


def events(count: int, documents: int, seed: int = 0) -> Iterator[Event]:
    """Yield ``count`` rankings, each followed by its feedback."""
    rng = np.random.default_rng(seed)
    subjects = rng.standard_normal((SUBJECTS, WIDTH)).astype(np.float32)
    for step in range(count):
        subject = int(rng.integers(SUBJECTS))
        question = subjects[subject] + 0.5 * rng.standard_normal(WIDTH).astype(np.float32)
        question = (question / np.linalg.norm(question)).astype(np.float16).astype(np.float32)
        right = subject % documents
        shown = [right, *((right + 1 + rng.integers(0, documents - 1, SHOWN - 1)) % documents).tolist()]
        names = tuple(dict.fromkeys(f"d{one}" for one in shown))
        cold = np.log(rng.dirichlet(np.ones(len(names))) + 1e-4)
        ranking = RankingServed(
            ranking_id=f"r{step}", namespace="default", at=1.8e9 + step, query_key=f"q{step}", encoder="benchmark",
            query_vector=question, document_ids=names, positions=tuple(range(len(names))),
            scores=(0.5,) * len(names), cold=tuple(cold.round(4).tolist()), signals={},
            propensities=(1.0,) * len(names), candidates=20,
        )
        yield ranking
        helped = names[0] if rng.random() < 0.8 else names[int(rng.integers(len(names)))]
        yield FeedbackGiven(
            feedback_id=f"f{step}", ranking_id=ranking.ranking_id, namespace="default", at=ranking.at + 1,
            source="user", rewards=((helped, 1.0),), ranking=ranking,
        )


def measure(count: int, documents: int) -> tuple[float, float, float, int, int]:
    """Return seconds of catch-up and of starting from a snapshot, fold seconds, snapshot bytes, questions kept."""
    settings = RerankSettings()
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(f"sqlite:///{folder}/t.db")
        batch: list[Event] = []
        for event in events(count, documents):
            batch.append(event)
            if len(batch) == 2_000:
                store.append(batch)
                batch = []
        store.append(batch)
        started = time.process_time()
        memory = Memory(store, settings=settings, snapshot_every=1)
        state = memory.state("default")
        caught_up = time.process_time() - started
        memory.save_snapshots()
        started = time.process_time()
        Memory(store, settings=settings, snapshot_every=1).state("default")
        from_snapshot = time.process_time() - started
        folded = _fold_seconds(store, settings)
        kept = sum(one.helped.total + one.failed.total for one in state.learners.values())
        data = pack(state)
        unpack(data, settings)
        store.close()
    return caught_up, from_snapshot, folded, len(data), kept


def _fold_seconds(store: object, settings: RerankSettings) -> float:
    recorded = store.read(limit=40_000)  # type: ignore[attr-defined]  # a store
    state = LearnedState(settings)
    started = time.process_time()
    for one in recorded:
        state.fold(one)
    return (time.process_time() - started) / (len(recorded) / 2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=100_000, help="largest number of feedback events")
    parser.add_argument("--documents", type=int, default=2_000)
    chosen = parser.parse_args()
    print(f"{'feedback':>10s} {'catch-up':>22s} {'fold alone':>16s} {'snapshot':>20s} {'kept':>10s}")
    rows, count = [], 1_000
    while count <= chosen.most:
        caught_up, from_snapshot, folded, size, kept = measure(count, chosen.documents)
        rows.append((count, caught_up, size))
        print(f"{count:10,d} {caught_up:8.2f} s {count / caught_up:9,.0f} /s {folded * 1e6:10.1f} us each "
              f"{from_snapshot:8.3f} s {size / 1e6:6.1f} MB {kept:10,d}", flush=True)
        count *= 10
    if len(rows) > 1:
        (few, quick, small), (many, slow, large) = rows[0], rows[-1]
        span = math.log(many / few)
        print(f"growth exponents: catch-up {math.log(slow / quick) / span:.2f}, "
              f"state size {math.log(large / small) / span:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
