"""Learned state over its life: fold speed, size, start from a snapshot, speed of a ranking; and how they grow.

    python benchmarks/memory.py [--most 100000] [--documents 2000]

Every feedback comes with its ranking: 5 shown of 2,000 documents, 256-d questions on 4,000 subjects, 80 % of the
feedback right. The log lies in a SQLite file. "read" takes it from there, "fold" takes it in, both together are what a
process does that starts without a snapshot; "start" is a process that starts from one. "rerank" is a call with 100
candidates and their vectors, top 10, without encoding, the median of 200, and beside it how often that is the floor of
``rerank.py`` (a bare diversity loop over as many vectors) timed in turn with it: on a shared machine only this ratio
can be compared between lines. All are CPU seconds of this process; sizes are those of everything that the state holds,
counted object by object, and of the snapshot. "wake" is a process that stood where the line before ends and looks
again: where another one has saved a snapshot since, it goes on from that, and folds the 3,000 feedbacks after it (half
of ``snapshot_every`` is 2,500).

Exponents are slopes of log cost over log events, 1 = linear: by least squares over all sizes, and over the last step.
What is kept is bounded by the settings max_documents, questions_per_document, max_questions and max_sessions.
``--most 1000000`` takes about 10 minutes and 1.2 GB of disk in the temporary folder.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any

import numpy as np
from rerank import floor_mmr

from neuralcache_plugins import Reranker, StoreSettings
from neuralcache_plugins.contracts import Event, FeedbackGiven, RankingServed, Snapshot, TelemetryStore
from neuralcache_plugins.memory import LearnedState, Memory
from neuralcache_plugins.memory.snapshots import fold_name, pack
from neuralcache_plugins.settings import RerankSettings
from neuralcache_plugins.stores import open_store

SHOWN, WIDTH, SUBJECTS, CANDIDATES, TOP_N = 5, 256, 4_000, 100, 10
FIRST, BATCH, TAIL = 1_000, 2_000, 3_000
METARANK = "Metarank publishes 1,000-3,000 events/s of data import (docs.metarank.ai/introduction/performance)"


class Table:
    """Stands where an encoder goes; every question and document brings its vector."""

    fingerprint = "benchmark"

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        raise AssertionError("the benchmark encodes nothing")

    def embed_query(self, text: str) -> list[float]:
        raise AssertionError("the benchmark encodes nothing")


class World:
    """Rankings and feedback about documents that each answer some subjects."""

    def __init__(self, documents: int, seed: int = 0) -> None:
        self.documents = documents
        self.rng = np.random.default_rng(seed)
        self.subjects = self.rng.standard_normal((SUBJECTS, WIDTH)).astype(np.float32)
        self.rows = _unit(self.rng.standard_normal((documents, WIDTH)))

    def question(self, subject: int) -> np.ndarray:
        near = self.subjects[subject] + 0.5 * self.rng.standard_normal(WIDTH).astype(np.float32)
        return _unit(near).astype(np.float16).astype(np.float32)

    def events(self) -> Iterator[Event]:
        """Yield rankings without end, each followed by its feedback."""
        rng, step = self.rng, 0
        while True:
            subject = int(rng.integers(SUBJECTS))
            right = subject % self.documents
            others = (right + 1 + rng.integers(0, self.documents - 1, SHOWN - 1)) % self.documents
            names = tuple(dict.fromkeys(f"d{one}" for one in [right, *others.tolist()]))
            cold = np.log(rng.dirichlet(np.ones(len(names))) + 1e-4)
            ranking = RankingServed(
                ranking_id=f"r{step}", namespace="default", at=1.8e9 + step, query_key=f"q{step}", encoder="benchmark",
                query_vector=self.question(subject), document_ids=names, positions=tuple(range(len(names))),
                scores=(0.5,) * len(names), cold=tuple(cold.round(4).tolist()), signals={},
                propensities=(1.0,) * len(names), candidates=20,
            )
            yield ranking
            helped = names[0] if rng.random() < 0.8 else names[int(rng.integers(len(names)))]
            yield FeedbackGiven(
                feedback_id=f"f{step}", ranking_id=ranking.ranking_id, namespace="default", at=ranking.at + 1,
                source="user", rewards=((helped, 1.0),), ranking=ranking,
            )
            step += 1


@dataclass(frozen=True)
class Measured:
    """One line of the table: seconds and bytes after so many feedback events."""

    events: int
    read: float
    fold: float
    fold_now: float
    ram: int
    snapshot: int
    start: float
    wake: float
    rerank: float
    over_floor: float
    kept: int


def measure(most: int, documents: int) -> Iterator[Measured]:
    """Yield a line for 1,000, 10,000, ... feedback events of one log."""
    settings, world = RerankSettings(), World(documents)
    stream, state = world.events(), LearnedState(settings)
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(f"sqlite:///{folder}/t.db")
        read = fold = 0.0
        done, due = 0, FIRST
        while due <= most:
            sleeper = Memory(store, settings=settings, snapshot_every=StoreSettings().snapshot_every)
            sleeper.state("default")
            more_read = more_fold = 0.0
            for begin in range(done, due, BATCH // 2):
                store.append(list(islice(stream, 2 * min(BATCH // 2, due - begin))))
                one_read, one_fold = _take_in(store, state)
                more_read, more_fold = more_read + one_read, more_fold + one_fold
                if begin + BATCH // 2 == due - TAIL:
                    _save(store, settings, state)
            read, fold = read + more_read, fold + more_fold
            wake = _state_seconds(sleeper)
            size = _save(store, settings, state)
            start = _state_seconds(Memory(store, settings=settings, snapshot_every=1))
            kept = sum(one.helped.total + one.failed.total for one in state.learners.values())
            yield Measured(due, read, fold, more_fold / (due - done), held_bytes(state), size, start, wake,
                           *_rerank_seconds(store, world), kept)
            done, due = due, due * 10
        store.close()


def _take_in(store: TelemetryStore, state: LearnedState) -> tuple[float, float]:
    started = time.process_time()
    recorded = store.read(after=state.position, limit=BATCH)
    between = time.process_time()
    for one in recorded:
        state.fold(one)
    return between - started, time.process_time() - between


def _save(store: TelemetryStore, settings: RerankSettings, state: LearnedState) -> int:
    data = pack(state)
    store.save_snapshot("default", fold_name(settings), Snapshot(store.head().epoch, state.position, data))
    return len(data)


def _state_seconds(memory: Memory) -> float:
    started = time.process_time()
    memory.state("default")
    return time.process_time() - started


def _rerank_seconds(store: TelemetryStore, world: World, calls: int = 200) -> tuple[float, float]:
    """Return the median of calls about known subjects, and that over the floor's; what they record is thrown away."""
    taken, floors, floor = [], [], floor_mmr(CANDIDATES, WIDTH)
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as folder:
        own = open_store(f"sqlite:///{folder}/t.db")
        snapshot = store.load_snapshot("default", fold_name(RerankSettings()))
        if snapshot is None:
            raise AssertionError("the snapshot was just saved")
        own.save_snapshot("default", fold_name(RerankSettings()), Snapshot(own.head().epoch, 0, snapshot.state))
        with Reranker(Table(), store=own, store_settings=StoreSettings(flush_interval_seconds=3600)) as reranker:
            for call in range(calls + 5):
                subject = int(rng.integers(SUBJECTS))
                chosen = dict.fromkeys([subject % world.documents, *rng.permutation(world.documents).tolist()])
                places = list(islice(chosen, CANDIDATES))
                names, texts = [f"d{one}" for one in places], [f"text of document {one}" for one in places]
                rows, question = world.rows[places], world.question(subject)
                started = time.thread_time()
                reranker.rerank("a question", texts, ids=names, query_vector=question, vectors=rows, top_n=TOP_N)
                between = time.thread_time()
                floor()
                if call >= 5:
                    taken.append(between - started)
                    floors.append(time.thread_time() - between)
            if not reranker.stats().namespace.remembered_questions:
                raise AssertionError("the ranking did not start from the snapshot")
    return statistics.median(taken), statistics.median(taken) / statistics.median(floors)


def held_bytes(value: Any) -> int:
    """Return the bytes of an object and all that it holds, each counted once; settings and classes are not its own."""
    seen: set[int] = set()
    total, waiting = 0, [value]
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, (type, RerankSettings)):
            continue
        seen.add(id(one))
        total += sys.getsizeof(one)
        if isinstance(one, np.ndarray):
            waiting += [] if one.base is None else [one.base]  # a view's numbers are its base's
        elif isinstance(one, Mapping):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, (list, tuple, set)):
            waiting += one
        elif not isinstance(one, (str, bytes, int, float)):
            waiting += vars(one).values() if hasattr(one, "__dict__") else _slotted(one)
    return total


def _slotted(one: Any) -> list[Any]:
    return [getattr(one, name) for name in getattr(type(one), "__slots__", ()) if hasattr(one, name)]


def exponent(counts: Sequence[float], costs: Sequence[float]) -> float:
    """Return the slope of log cost over log count by least squares."""
    return float(np.polyfit(np.log(counts), np.log(np.maximum(costs, 1e-9)), 1)[0])


def _unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=100_000, help="largest number of feedback events")
    parser.add_argument("--documents", type=int, default=2_000)
    chosen = parser.parse_args()
    print(f"{'feedback':>10s}{'read':>10s}{'fold':>10s}{'catch-up':>14s}{'fold now':>15s}{'in memory':>13s}"
          f"{'snapshot':>11s}{'start':>10s}{'wake':>10s}{'rerank':>10s}{'x floor':>9s}{'questions':>11s}")
    lines: list[Measured] = []
    for one in measure(chosen.most, chosen.documents):
        lines.append(one)
        print(f"{one.events:10,d}{one.read:8.2f} s{one.fold:8.2f} s{one.events / (one.read + one.fold):12,.0f}/s"
              f"{1 / one.fold_now:13,.0f}/s{one.ram / 1e6:10.1f} MB{one.snapshot / 1e6:8.1f} MB{one.start:8.3f} s"
              f"{one.wake:8.3f} s{one.rerank * 1e6:7.0f} us{one.over_floor:9.1f}{one.kept:11,d}", flush=True)
    if len(lines) > 1:
        counts = [one.events for one in lines]
        print("\ngrowth exponent       all  last step")
        for name in (field.name for field in fields(Measured)):
            if name != "events":
                costs = [getattr(one, name) for one in lines]
                print(f"{name:18s}{exponent(counts, costs):7.2f}{exponent(counts[-2:], costs[-2:]):11.2f}")
    last = lines[-1]
    rate = last.events / (last.read + last.fold)
    print(f"\ncatch-up of {last.events:,} feedback events, each with its ranking: {rate:,.0f} feedback events/s "
          f"(target 20,000), which are {2 * rate:,.0f} events/s of the log\n{METARANK}")
    if len(lines) > 1:
        slept = last.events - lines[-2].events
        print(f"a process that slept through {slept:,} of them: {slept / last.wake:,.0f} feedback events/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
