"""What a lookup costs with 1,000 to 100,000 answers cached, beside LangChain's InMemoryCache and GPTCache.

``cache.py --rows growth`` calls this. Questions are made up of 5,000 invented words; a vector is the mean of random
word vectors, 256-d, and known beforehand, so embedding costs nothing on either side. A cache is filled, certified on
rewordings with known answers, and asked. Times are medians: CPU of the calling thread (of the process for GPTCache,
which searches in threads of its own), then wall.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from langchain_core.caches import InMemoryCache
from langchain_core.outputs import Generation

from neuralcache_plugins import CacheSettings, SemanticCache

WIDTH = 256
ASKED = 300
TAUGHT = 500
SCOPE = {"model": "m"}
LITTLE = ("how", "do", "i", "the", "a", "my", "to", "in", "of", "for")


class Made:
    """Invented questions with vectors, and the encoder that knows them."""

    def __init__(self, count: int) -> None:
        rng = np.random.default_rng(count)
        syllables = [first + vowel for first in "bdfgklmnprstvz" for vowel in "aeiou"]
        words = ["".join(rng.choice(syllables, 3)) for _ in range(5_000)]
        self._rows = dict(zip([*words, *LITTLE], rng.normal(size=(len(words) + len(LITTLE), WIDTH)), strict=False))
        for little in LITTLE:
            self._rows[little] *= 0.3
        self.vectors: dict[str, np.ndarray] = {}
        self.questions = self._made(rng, words, count)
        self.others = self._made(rng, words, ASKED)
        again = rng.choice(count, min(count, ASKED + TAUGHT), replace=False).tolist()
        self.again = [(self._reworded(self.questions[place]), self.questions[place]) for place in again]

    def embed_query(self, text: str) -> np.ndarray:
        return self.vectors[text]

    def embed_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self.vectors[text] for text in texts]

    def _made(self, rng: np.random.Generator, words: Sequence[str], count: int) -> list[str]:
        """Return questions of four words that mean something among five that do not."""
        said = (" ".join(["how do i", words[a], "the", words[b], words[c], "in my", words[d]])
                for a, b, c, d in rng.integers(0, len(words), (count, 4)).tolist())
        return [self._known(text) for text in said]

    def _reworded(self, question: str) -> str:
        return self._known(question.replace("how do i", "how to").replace(" the ", " a "))

    def _known(self, text: str) -> str:
        total = np.sum([self._rows[word] for word in text.split()], axis=0)
        self.vectors[text] = (total / np.linalg.norm(total)).astype(np.float32)
        return text


def show_growth(sizes: Iterable[int], gptcache: str | None) -> None:
    """Print a row for each size and each kind of call."""
    for size in sizes:
        made = Made(size)
        timed = {**_ours(made), "langchain InMemoryCache, exact": _langchain(made)}
        if gptcache is not None:
            timed |= _gptcache(made, gptcache)
        for name, (cpu, wall, found) in timed.items():
            print(f"    {size:>7,} {name}: {1e3 * cpu:.4g} ms CPU, {1e3 * wall:.4g} ms wall ({100 * found:.0f} % hits)",
                  flush=True)


def _ours(made: Made) -> dict[str, tuple[float, float, float]]:
    settings = CacheSettings(max_error=0.05, audit_rate=0.02, max_entries=2 * len(made.questions) + 10_000)
    with tempfile.TemporaryDirectory() as folder, SemanticCache(
        made, store=f"sqlite:///{Path(folder) / 'c.db'}", settings=settings, seed=0
    ) as cache:
        puts = [_seconds(lambda one=one: cache.put(one, f"answer {one}", scope=SCOPE)) for one in made.questions]
        for again, first in made.again[ASKED:]:
            if cache.lookup(again, scope=SCOPE) is None:
                cache.put(again, f"answer {first}", scope=SCOPE)
        cache.flush()
        assert cache.certificate().live, cache.certificate()
        while cache._semantic._nearest._builder.busy:  # an index over many entries is built beside the callers
            time.sleep(0.2)
        known = made.questions[:ASKED]
        return {
            "ours, put": _medians(puts[-ASKED:]),
            "ours, exact": _asked(cache, known),
            "ours, exact again": _asked(cache, known),
            "ours, similar": _asked(cache, [again for again, _ in made.again[:ASKED]]),
            "ours, miss": _asked(cache, made.others),
        }


def _asked(cache: SemanticCache, questions: Sequence[str]) -> tuple[float, float, float]:
    return _medians([_seconds(lambda one=one: cache.lookup(one, scope=SCOPE)) for one in questions])


def _langchain(made: Made) -> tuple[float, float, float]:
    cache = InMemoryCache()
    for question in made.questions:
        cache.update(question, "m", [Generation(text=f"answer {question}")])
    return _medians([_seconds(lambda one=one: cache.lookup(one, "m")) for one in made.questions[:ASKED]])


def _gptcache(made: Made, python: str) -> dict[str, tuple[float, float, float]]:
    again = [text for text, _ in made.again[:ASKED]]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "v.npy"
        np.save(file, np.stack([made.vectors[text] for text in (*made.questions, *again, *made.others)]))
        job = {"vectors": str(file), "questions": made.questions, "again": again, "others": made.others}
        worker = Path(__file__).with_name("gptcache_worker.py")
        done = subprocess.run([python, str(worker)], input=json.dumps(job) + "\n", capture_output=True, text=True,
                              check=False)
    if done.returncode:
        print(f"    GPTCache failed: {done.stderr.strip().splitlines()[-1]}")
        return {}
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {f"GPTCache, {name}": (cpu, wall, found) for name, (cpu, wall, found) in told.items()}


def _seconds(work: Callable[[], object]) -> tuple[float, float, bool]:
    cpu, wall = time.thread_time(), time.perf_counter()
    found = work()
    return time.thread_time() - cpu, time.perf_counter() - wall, found is not None


def _medians(calls: Sequence[tuple[float, float, bool]]) -> tuple[float, float, float]:
    cpu, wall, found = zip(*calls, strict=True)
    return statistics.median(cpu), statistics.median(wall), sum(found) / len(found)
