"""Processes full of threads rank and give feedback on one SQLite file: nothing may be lost, and all must end alike.

``python tests/stress/many_processes.py [--processes 4] [--threads 8] [--rounds 200] [--fork]``. Processes are
spawned; with ``--fork`` they are forked off a parent that is ranking in all its threads, and work with the very
reranker that they inherit, the parent being one of them.

When all have finished, this process takes the file's write lock, so that the log stands still. Under it every process
answers the same questions and hashes its learned state, and so do two fresh ones: one starts from a snapshot that was
taken on the way, the other folds the whole log. Then the ids in the file, read by plain ``sqlite3``, are compared with
those that were acknowledged.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import multiprocessing
import random
import sqlite3
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from neuralcache_plugins import Reranker, RerankSettings, StoreSettings
from neuralcache_plugins.memory.snapshots import pack
from neuralcache_plugins.testing import HashingEncoder

TOPICS = ("reset password app", "opening hours branch", "card delivery days", "interest savings account",
          "cancel pending transfer", "exchange rates abroad", "lost stolen phone", "change home address",
          "mortgage early repayment", "salary statement download", "contactless payment limit", "joint account partner")
FILLERS = ("please", "what", "where", "again", "today", "help")
DOCUMENTS = {f"d{number}": f"page {number} of this handbook" for number in range(len(TOPICS))}  # words do not help
QUESTIONS = tuple(f"now {topic}" for topic in TOPICS[::2])


class Plan(NamedTuple):
    """What everybody does."""

    url: str
    threads: int
    rounds: int
    seed: int
    patience: float
    snapshot_every: int
    max_documents: int = RerankSettings.model_fields["max_documents"].default


@dataclass(frozen=True)
class Work:
    """What one process did: the ids that were acknowledged, and what went wrong."""

    rankings: tuple[str, ...] = ()
    feedback: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    dropped: int = 0


@dataclass(frozen=True)
class View:
    """How one process sees the log in the end. ``began_at`` counts the events of the snapshot that it started from."""

    name: str
    state: str
    answers: tuple[tuple[tuple[str, ...], tuple[float, ...]], ...]
    trusts: tuple[float, ...]
    began_at: int
    rankings: tuple[str, ...]

    def __str__(self) -> str:
        start = f", begun with a snapshot of {self.began_at} events" if self.began_at else ""
        lines = [f"{self.name}: state {self.state}{start}"]
        for question, (ids, scores) in zip(QUESTIONS, self.answers, strict=True):
            order = " ".join(f"{name}={score:.6f}" for name, score in zip(ids[:5], scores, strict=False))
            lines.append(f"  {question}: {order} ...")
        return "\n".join(lines)


@dataclass(frozen=True)
class Outcome:
    """What was seen; ``problems`` must be empty."""

    rankings: int
    feedback: int
    views: tuple[View, ...]
    problems: tuple[str, ...]
    seconds: float

    def __str__(self) -> str:
        states, orders = ({getattr(view, name) for view in self.views} for name in ("state", "answers"))
        return "\n".join([
            *map(str, self.views), *self.problems,
            f"{'FAILED' if self.problems else 'ok'}: {self.rankings} rankings and {self.feedback} feedbacks "
            f"acknowledged in {self.seconds:.1f} s; {len(self.views)} processes ended with {len(states)} state(s) and "
            f"{len(orders)} order(s)",
        ])


class Clock:
    """The wall clock, until it is stopped: scores depend on the moment at which they are asked for."""

    stopped_at: float | None = None

    def __call__(self) -> float:
        return time.time() if self.stopped_at is None else self.stopped_at


class Participant(NamedTuple):
    """One that works and looks, and the line to it."""

    name: str
    line: Connection
    process: BaseProcess | threading.Thread
    patience: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patience", type=float, default=600.0, help="seconds after which a process counts as hung")
    parser.add_argument("--fork", action="store_true", help="fork off a busy process instead of spawning")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = run(Path(folder) / "telemetry.db", processes=arguments.processes, threads=arguments.threads,
                      rounds=arguments.rounds, seed=arguments.seed, patience=arguments.patience, fork=arguments.fork)
    sys.stdout.write(f"{outcome}\n")
    return 1 if outcome.problems else 0


def run(path: Path, *, processes: int, threads: int, rounds: int, seed: int, patience: float, fork: bool) -> Outcome:
    """Let all work, then let all look, and compare."""
    events = 2 * processes * threads * rounds
    plan = Plan(f"sqlite:///{path}", threads, rounds, seed, patience, snapshot_every=max(1, events // 5))
    fresh = [_spawn("from a snapshot", plan._replace(threads=0)),
             # a bound that nothing reaches: the same fold by another name, for which nobody has a snapshot
             _spawn("from scratch", plan._replace(threads=0, max_documents=plan.max_documents + 1))]
    for one in fresh:
        _receive(one)
    start = time.monotonic()
    workers = _fork_off_a_busy_process(plan, processes) if fork else [
        _spawn(f"process {number}", plan, number) for number in range(processes)]
    works = [_receive(worker) for worker in workers]
    seconds = time.monotonic() - start
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        moment = time.time()
        views = [*_ask(workers, moment), *_ask(fresh, moment)]
        connection.execute("ROLLBACK")
    for one in [*workers, *fresh]:
        one.line.send("leave")
        one.process.join(patience)
    return Outcome(sum(len(work.rankings) for work in works), sum(len(work.feedback) for work in works), tuple(views),
                   tuple(_problems(path, works, views)), seconds)


def _problems(path: Path, works: Sequence[Work], views: Sequence[View]) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        rankings = [name for (name,) in connection.execute("SELECT ranking_id FROM rankings")]
        feedback = [name for (name,) in connection.execute("SELECT DISTINCT feedback_id FROM feedback")]
        events = connection.execute("SELECT count(*) FROM events").fetchone()[0]
        verdict = connection.execute("PRAGMA integrity_check").fetchone()[0]
    found = [error for work in works for error in work.errors]
    served = [name for one in [*works, *views] for name in one.rankings]
    told = [name for work in works for name in work.feedback]
    for what, acknowledged, stored in (("rankings", served, rankings), ("feedbacks", told, feedback)):
        if sorted(acknowledged) != sorted(stored):
            found.append(f"{what}: {len(set(acknowledged) - set(stored))} of {len(acknowledged)} lost, "
                         f"{len(set(stored) - set(acknowledged))} of {len(stored)} never acknowledged")
    if events != len(served) + len(told):
        found.append(f"{events} events for {len(served)} rankings and {len(told)} feedbacks")
    if any(work.dropped for work in works):
        found.append(f"dropped: {[work.dropped for work in works]}")
    if verdict != "ok":
        found.append(f"the file is damaged: {verdict}")
    found += [f"{view.name} ended with another state" for view in views if view.state != views[0].state]
    found += [f"{view.name} ended with another order" for view in views if view.answers != views[0].answers]
    *_, snapshot, scratch = views
    if not 0 == scratch.began_at < snapshot.began_at:
        found.append(f"the fresh ones began at {snapshot.began_at} and {scratch.began_at}")
    if min(views[0].trusts) <= 0.5:
        found.append(f"too little was learned to tell: trust {min(views[0].trusts):.2f}")
    return found


def _spawn(name: str, plan: Plan, number: int = 0) -> Participant:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=take_part, args=(there, name, plan, number), name=name, daemon=True)
    process.start()
    there.close()
    return Participant(name, here, process, plan.patience)


def _fork_off_a_busy_process(plan: Plan, processes: int) -> list[Participant]:
    context = multiprocessing.get_context("fork")
    clock = Clock()
    reranker = _open(plan, clock)
    here, there = context.Pipe()
    parent = threading.Thread(target=take_part, args=(there, "parent", plan, 0, reranker, clock), daemon=True)
    parent.start()
    workers = [Participant("parent", here, parent, plan.patience)]
    for number in range(1, processes):
        time.sleep(0.05)
        here, there = context.Pipe()
        name = f"process {number}"
        child = context.Process(target=take_part, args=(there, name, plan, number, reranker, clock), daemon=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads is the point here
            child.start()
        workers.append(Participant(name, here, child, plan.patience))
    return workers


def _ask(participants: Sequence[Participant], moment: float) -> list[View]:
    for one in participants:
        one.line.send(moment)
    return [_receive(one) for one in participants]


def _receive(one: Participant) -> Any:
    deadline = time.monotonic() + one.patience
    while not one.line.poll(0.2):
        if not one.process.is_alive() and not one.line.poll(0):
            raise RuntimeError(f"{one.name} died")
        if time.monotonic() > deadline:
            raise RuntimeError(f"{one.name} hangs")
    answer = one.line.recv()
    if isinstance(answer, str):
        raise RuntimeError(f"{one.name} failed:\n{answer}")
    return answer


# in the processes


def take_part(line: Connection, name: str, plan: Plan, number: int = 0, reranker: Reranker | None = None,
              clock: Clock | None = None) -> None:
    """Work, look when told the moment, leave when told so."""
    if multiprocessing.parent_process():
        faulthandler.dump_traceback_later(0.9 * plan.patience)  # where it hangs
    try:
        clock = clock or Clock()
        if plan.threads:
            reranker = reranker or _open(plan, clock)
            line.send(_work(reranker, plan, number))
        else:
            line.send(Work())
        clock.stopped_at = line.recv()
        reranker = reranker or _open(plan, clock)
        line.send(replace(_look(reranker), name=name))
        line.recv()  # what is served while looking must not be written before all have looked
        reranker.close()
    except Exception:  # noqa: BLE001
        line.send(traceback.format_exc())


def _open(plan: Plan, clock: Clock) -> Reranker:
    return Reranker(HashingEncoder(), store=plan.url, clock=clock,
                    settings=RerankSettings(max_documents=plan.max_documents),
                    store_settings=StoreSettings(snapshot_every=plan.snapshot_every))


def _work(reranker: Reranker, plan: Plan, number: int) -> Work:
    diaries: list[tuple[list[str], list[str], list[str]]] = [([], [], []) for _ in range(plan.threads)]
    threads = [
        threading.Thread(target=_rounds, args=(reranker, f"{number}-{thread}", plan, *diary))
        for thread, diary in enumerate(diaries)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reranker.flush()
    for thread in threading.enumerate():
        if thread.name == "neuralcache-tidy":
            thread.join()
    acknowledged = (tuple(chain.from_iterable(kind)) for kind in zip(*diaries, strict=True))
    return Work(*acknowledged, dropped=reranker.stats().recorder.dropped)


def _rounds(reranker: Reranker, name: str, plan: Plan, rankings: list[str], feedback: list[str],
            errors: list[str]) -> None:
    rng = random.Random(f"{plan.seed} {name}")
    ids = list(DOCUMENTS)
    try:
        for number in range(plan.rounds):
            right = rng.choice(ids)
            query = f"{rng.choice(FILLERS)} {TOPICS[int(right[1:])]} {rng.choice(FILLERS)}"
            rng.shuffle(ids)
            ranking = reranker.rerank(query, [DOCUMENTS[one] for one in ids], ids=ids,
                                      session=name if rng.random() < 0.2 else None)
            rankings.append(ranking.ranking_id)
            helpful = [right if rng.random() < 0.9 else rng.choice(ids)]
            told = f"{name}-{number}"
            # all ways to name a ranking: itself, its id, the question (perhaps another's ranking of it), and twice
            ways = ({"ranking": ranking}, {"ranking": ranking.ranking_id}, {"query": query}, {"ranking": ranking})
            for _ in range(2 if number % 4 == 3 else 1):
                reranker.feedback(**ways[number % 4], helpful=helpful, feedback_id=told)
            feedback.append(told)
            if rng.random() < 0.1:
                time.sleep(0.01)  # the others go ahead
        # nobody answers this one, and so it is left to the recorder
        rankings.append(reranker.rerank("unanswered", list(DOCUMENTS.values()), ids=list(DOCUMENTS)).ranking_id)
    except Exception:  # noqa: BLE001
        errors.append(f"thread {name}: {traceback.format_exc()}")


def _look(reranker: Reranker) -> View:
    with reranker._memory.lock:
        state = hashlib.sha256(pack(reranker._memory.state(reranker.namespace))).hexdigest()[:16]
    began_at = reranker._memory._snapshot_at.get(reranker.namespace, 0)
    rankings = [reranker.rerank(question, list(DOCUMENTS.values()), ids=list(DOCUMENTS)) for question in QUESTIONS]
    return View("", state, tuple((one.ids, one.scores) for one in rankings), tuple(one.trust for one in rankings),
                began_at, tuple(one.ranking_id for one in rankings))


if __name__ == "__main__":
    sys.exit(main())
