"""What the SQLite store costs beside the least that SQLite itself could cost: one thread, one process.

``python benchmarks/stores.py [--rounds N] [--folder DIR]``. Printed are the median and the worst CPU time of all
rounds, and the two ratios that are promised: durable feedback against a bare transaction of the same rows on the same
kind of connection, and events read per second.
"""

from __future__ import annotations

import argparse
import gc
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from neuralcache_plugins.contracts import FeedbackGiven, RankingServed, StoredVector
from neuralcache_plugins.stores import codec
from neuralcache_plugins.stores.sqlite import SqliteStore
from neuralcache_plugins.telemetry import Recorder
from neuralcache_plugins.testing import make_feedback, make_ranking

WIDTH = 256
SHOWN = 8
INSERT = f"INSERT INTO events ({', '.join(codec.COLUMNS)}) VALUES ({', '.join('?' * len(codec.COLUMNS))})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--folder", type=Path, default=None, help="where the files go (default: the temporary folder)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for synchronous in ("normal", "full"):
            rounds = arguments.rounds if synchronous == "normal" else arguments.rounds // 10
            feedback_alone(Path(folder), synchronous, rounds)
        told(Path(folder), arguments.rounds)
        hot_path(Path(folder), arguments.rounds)
        reading(Path(folder), 20_000)


def feedback_alone(folder: Path, synchronous: str, rounds: int) -> None:
    """Time ``append`` of one feedback, its ranking stored before or not, against bare SQL."""
    for known in (True, False):
        store = SqliteStore(folder / f"store-{synchronous}-{known}.db", synchronous=synchronous)
        bare = SqliteStore(folder / f"bare-{synchronous}-{known}.db", synchronous=synchronous)
        connection = bare._connections.writer()
        mine, floor = [], []
        for number in range(rounds):
            event = example(number)
            rows = [codec.encode_ranking(event.ranking), codec.encode_feedback(event)]
            if known:
                store.append([event.ranking])
                bare.append([event.ranking])
            mine.append(timed(partial(store.append, [event])))
            floor.append(timed(partial(bare_transaction, connection, rows[1:] if known else rows)))
        ranking = "stored before" if known else "not stored yet"
        report(f"append([feedback]), ranking {ranking}, synchronous={synchronous}", mine, floor)
        store.close()
        bare.close()


def bare_transaction(connection: sqlite3.Connection, rows: list[codec.Row]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    for row in rows:
        connection.execute(INSERT, row)
    connection.execute("COMMIT")


def told(folder: Path, rounds: int) -> None:
    """Time ``Recorder.told`` with its ranking pending, and with its ranking written before."""
    for pending in (False, True):
        store = SqliteStore(folder / f"told-{pending}.db")
        recorder = Recorder(store, flush_interval_seconds=3600, buffer_rankings=10_000)
        times = []
        for number in range(rounds):
            event = example(number)
            recorder.served(event.ranking)
            if not pending:
                recorder.flush()
            times.append(timed(partial(recorder.told, event)))
        report(f"Recorder.told, ranking {'pending' if pending else 'written before'}", times)
        recorder.close()
        store.close()


def hot_path(folder: Path, rounds: int) -> None:
    """Time what one rerank costs: ``Recorder.served`` and ``sign``."""
    store = SqliteStore(folder / "hot.db")
    recorder = Recorder(store, flush_interval_seconds=3600, buffer_rankings=rounds + 1)
    events = [make_ranking(f"hot{number}") for number in range(rounds)]
    report("Recorder.served", [timed(partial(recorder.served, event)) for event in events])
    recorder.flush()
    report("sign()", [timed(store.sign) for _ in range(rounds)])
    vectors = [StoredVector(f"key{number}", example(number).ranking.query_vector) for number in range(100)]
    put = partial(store.put_vectors, vectors=vectors, at=0.0, max_rows=10**6)
    report("put_vectors, 100 new", [timed(partial(put, "n", f"e{number}")) for number in range(50)])
    keys = [vector.key for vector in vectors]
    report("get_vectors, 100 of 5,000", [timed(partial(store.get_vectors, "n", "e7", keys)) for _ in range(50)])
    recorder.close()
    store.close()


def reading(folder: Path, pairs: int) -> None:
    """Time reading the log from the beginning in batches of 1,000."""
    store = SqliteStore(folder / "read.db")
    for start in range(0, pairs, 1000):
        store.append([example(number) for number in range(start, start + 1000)])
    seconds = [timed(lambda: read_all(store)) for _ in range(5)]
    rates = [2 * pairs / each for each in seconds]
    print(f"read, {SHOWN} shown, {WIDTH}-d: median {statistics.median(rates):,.0f} events/s, "
          f"worst {min(rates):,.0f} (target 40,000)")
    store.close()


def read_all(store: SqliteStore) -> None:
    after = 0
    while batch := store.read(after=after):
        after = batch[-1].position


def example(number: int) -> FeedbackGiven:
    ranking: RankingServed = make_ranking(f"r{number}", documents=[f"document-{number + i}" for i in range(SHOWN)],
                                          width=WIDTH, seed=number, session=f"s{number % 100}",
                                          query_key=f"{number % 997:064x}")
    event = make_feedback(ranking, feedback_id=f"f{number}")
    return replace(event, document_vector=ranking.query_vector)


def timed(call: Callable[[], object]) -> float:
    gc.disable()
    start = time.thread_time()
    call()
    elapsed = time.thread_time() - start
    gc.enable()
    return elapsed


def report(label: str, mine: list[float], floor: list[float] | None = None) -> None:
    line = f"{label}: median {statistics.median(mine) * 1e6:.1f} us, worst {max(mine) * 1e6:.0f} us"
    if floor is not None:
        ratio = statistics.median(mine) / statistics.median(floor)
        line += f"; bare transaction {statistics.median(floor) * 1e6:.1f} us, ratio {ratio:.2f} (target 2)"
    print(line)


if __name__ == "__main__":
    main()
