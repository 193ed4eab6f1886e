"""Kill a process that gives feedback with SIGKILL at random moments: nothing that was acknowledged may be missing.

``python tests/stress/kill_nine.py [--kills 100] [--seed 0] [--threads 4]``. The writer prints each feedback id after
``Recorder.told`` returned; this process kills it, opens the file again and looks for every printed id.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from neuralcache_plugins.contracts import FeedbackGiven
from neuralcache_plugins.stores.sqlite import SqliteStore
from neuralcache_plugins.telemetry import Recorder
from neuralcache_plugins.testing import make_feedback, make_ranking, read_all


@dataclass(frozen=True)
class Outcome:
    """What was seen: ``missing`` and ``damaged`` must be empty."""

    kills: int
    acknowledged: int
    stored: int
    missing: tuple[str, ...]
    damaged: tuple[str, ...]

    def __str__(self) -> str:
        verdict = "ok" if not self.missing and not self.damaged else "FAILED"
        return (f"{verdict}: {self.kills} kills, {self.acknowledged} feedbacks acknowledged, {self.stored} stored, "
                f"{len(self.missing)} missing, damaged after {len(self.damaged)} kills")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--write", metavar="FILE", help=argparse.SUPPRESS)
    parser.add_argument("--round", default="0", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        write_until_killed(arguments.write, arguments.round, arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        outcome = kill_often(Path(folder) / "telemetry.db", kills=arguments.kills, seed=arguments.seed,
                             threads=arguments.threads)
    sys.stdout.write(f"{outcome}\n")
    return 0 if not outcome.missing and not outcome.damaged else 1


def kill_often(path: Path, *, kills: int, seed: int, threads: int) -> Outcome:
    """Let a writer run and kill it, again and again on one file."""
    rng = random.Random(seed)
    acknowledged: list[str] = []
    damaged: list[str] = []
    stored: set[str] = set()
    for number in range(kills):
        acknowledged.extend(write_and_kill(path, number, threads, delay_seconds=rng.uniform(0.0, 0.15)))
        with closing(SqliteStore(path)) as store:
            verdict = store.health()["integrity"]
            if verdict != "ok":
                damaged.append(verdict)
            stored = {entry.event.feedback_id for entry in read_all(store, batch=1000)
                      if isinstance(entry.event, FeedbackGiven)}
    missing = tuple(name for name in acknowledged if name not in stored)
    return Outcome(kills, len(acknowledged), len(stored), missing, tuple(damaged))


def write_and_kill(path: Path, number: int, threads: int, *, delay_seconds: float) -> list[str]:
    """Start a writer, kill it so long after its first feedback, and return what it had acknowledged."""
    command = [sys.executable, __file__, "--write", str(path), "--round", str(number), "--threads", str(threads)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        lines = [writer.stdout.readline()]
        assert lines[0].endswith("\n"), "the writer died by itself"
        killer = threading.Timer(delay_seconds, writer.send_signal, [signal.SIGKILL])
        killer.start()
        lines.extend(writer.stdout)
        killer.join()
    assert writer.returncode == -signal.SIGKILL, f"the writer ended by itself with {writer.returncode}"
    # a line that was cut off by the kill was not acknowledged
    return [line[:-1] for line in lines if line.endswith("\n")]


def write_until_killed(path: str, name: str, threads: int) -> None:
    """Serve rankings and give feedback from several threads for ever."""
    recorder = Recorder(SqliteStore(path), flush_interval_seconds=0.005, buffer_rankings=10_000)
    for thread in range(threads):
        threading.Thread(target=_write, args=(recorder, f"{name}-{thread}"), daemon=True).start()
    while True:
        time.sleep(60)


def _write(recorder: Recorder, name: str) -> None:
    number = 0
    while True:
        number += 1
        ranking = make_ranking(f"r{name}-{number}", documents=[f"d{i}" for i in range(8)], width=64, seed=number)
        recorder.served(make_ranking(f"x{name}-{number}", width=None))
        recorder.served(ranking)
        recorder.told(make_feedback(ranking, feedback_id=f"{name}-{number}"))
        os.write(1, f"{name}-{number}\n".encode())  # unbuffered, and one write is one line


if __name__ == "__main__":
    sys.exit(main())
