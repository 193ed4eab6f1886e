"""What a lookup costs with 1,000 to 100,000 answers cached, beside LangChain's InMemoryCache and GPTCache.

``cache.py --rows growth`` calls this. With ``--data`` the questions are people's: those of banking77, squad,
nlupp-banking and the turns of mtrag as they were written, about 15,000, and, for as many as are wanted beyond, the
first half of one before the second half of another of the same set, which may make no sense but has real words in
their usual places. Vectors are the local encoder's, made beforehand, so embedding costs nothing on either side.
Rewordings follow fixed rules (``REWORDED``). A cache is filled, certified on rewordings and on other questions with
known answers, and asked; what is asked for was in none of these. Times are CPU of the calling thread (of the process
for GPTCache, which searches in threads of its own), then wall: medians, first that of the quietest of ten rounds of 50
calls, half a second apart, because whoever shares the machine may slow a round by half; behind it that of all.

Beside it, ours with questions of invented words whose vectors are means of random ones: without any structure, the
worst case for an index that follows neighbours.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from langchain_core.caches import InMemoryCache
from langchain_core.outputs import Generation
from learning_sets import _lines, local_vectors

from neuralcache_plugins import CacheSettings, SemanticCache

ROUNDS, EACH, PAUSE_SECONDS = 10, 50, 0.5
ASKED = ROUNDS * EACH
TAUGHT = 800
"""So many rewordings, and as many questions that nobody asked before, teach and certify."""

SCOPE = {"model": "m"}
FILES = {
    "banking77": "utterances.jsonl.gz", "squad": "queries.jsonl.gz", "nlupp-banking": "utterances.jsonl.gz",
    "mtrag-clapnq": "queries.jsonl.gz", "mtrag-fiqa": "queries.jsonl.gz",
}
REWORDED: tuple[Callable[[str], str], ...] = (
    lambda said: f"Please tell me: {said[:1].lower()}{said[1:]}",
    lambda said: f"{said.rstrip(' ?.!')}, please?",
    lambda said: f"I have a question, {said[:1].lower()}{said[1:]}",
    lambda said: f"{said.rstrip(' ?.!')}? Thanks a lot",
)


Timed = tuple[float, float, float, float]
"""CPU in the quietest round, CPU and wall over all, medians in seconds; share of calls that found something."""


class Questions:
    """Distinct questions with unit vectors, and the encoder that knows them: (question, its rewording) pairs and
    questions that are not cached, first those to ask, then those that teach.
    """

    def __init__(self, cached: Sequence[str], others: Sequence[str], again: Sequence[tuple[str, str]],
                 rows: np.ndarray) -> None:
        self.cached, self.others, self.again = cached, others, again
        self.vectors = dict(zip([*cached, *others, *(said for said, _ in again)], rows, strict=True))

    def embed_query(self, text: str) -> np.ndarray:
        return self.vectors[text]

    def embed_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self.vectors[text] for text in texts]


def real(data: Path, count: int) -> Questions:
    """Return questions of the shared sets."""
    rng, wanted = np.random.default_rng(count), count + ASKED + TAUGHT
    sets = [list(dict.fromkeys(" ".join(row["text"].split()) for row in _lines(data / name / file)))
            for name, file in FILES.items()]
    written = [text for texts in sets for text in texts]
    said = list(dict.fromkeys(written[at] for at in rng.permutation(len(written))))
    while len(said) < wanted:
        said = list(dict.fromkeys([*said, *(_crossed(rng, sets) for _ in range(wanted - len(said)))]))
    said = [said[at] for at in rng.permutation(wanted)]
    known = set(said)
    ways = ((said[at % count], REWORDED[(at + at // count) % len(REWORDED)])
            for at in rng.permutation(len(REWORDED) * count).tolist())
    again = [(text, one) for one, way in ways if (text := way(one)) not in known][:ASKED + TAUGHT]
    rows = local_vectors([*said, *(text for text, _ in again)])
    return Questions(said[:count], said[count:], again, rows)


def _crossed(rng: np.random.Generator, sets: Sequence[Sequence[str]]) -> str:
    """Return the first half of one question before the second half of another."""
    sizes = np.array([len(texts) for texts in sets])
    texts = sets[int(rng.choice(len(sets), p=sizes / sizes.sum()))]
    one, other = (texts[at].split() for at in rng.integers(0, len(texts), 2).tolist())
    return " ".join([*one[:(len(one) + 1) // 2], *other[len(other) // 2:]])


def invented(count: int) -> Questions:
    """Return questions of four invented words among five that mean little; a vector is the mean of random ones."""
    rng, little = np.random.default_rng(count), ("how", "do", "i", "the", "a", "my", "to", "in", "of", "for")
    syllables = [first + vowel for first in "bdfgklmnprstvz" for vowel in "aeiou"]
    words = list(dict.fromkeys("".join(rng.choice(syllables, 3)) for _ in range(5_000)))
    rows = dict(zip([*words, *little], rng.normal(size=(len(words) + len(little), 256)), strict=True))
    rows |= {word: 0.3 * rows[word] for word in little}
    wanted, made = count + ASKED + TAUGHT, {}
    while len(made) < wanted:
        a, b, c, d = (words[at] for at in rng.integers(0, len(words), 4).tolist())
        made[f"how do i {a} the {b} {c} in my {d}"] = None
    said = list(made)
    again = [(said[at].replace("how do i", "how to").replace(" the ", " a "), said[at])
             for at in rng.choice(count, min(count, ASKED + TAUGHT), replace=False).tolist()]
    vectors = np.stack([np.sum([rows[word] for word in text.split()], axis=0)
                        for text in [*said, *(text for text, _ in again)]])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Questions(said[:count], said[count:], again, vectors.astype(np.float32))


def show_growth(sizes: Sequence[int], data: Path | None, gptcache: str | None) -> None:
    """Print a row for each size and each kind of call."""
    for size in sizes if data is not None else ():
        made = real(data, size)
        timed = {**_ours(made), "langchain InMemoryCache, exact": _langchain(made)}
        if gptcache is not None:
            timed |= _gptcache(made, gptcache)
        _print(size, timed)
    _print(max(sizes), {f"invented, {name}": row for name, row in _ours(invented(max(sizes))).items()})


def _print(size: int, timed: dict[str, Timed]) -> None:
    for name, (quiet, cpu, wall, found) in timed.items():
        print(f"    {size:>7,} {name}: {1e3 * quiet:.4g} ms CPU (all {1e3 * cpu:.4g}), {1e3 * wall:.4g} ms wall; "
              f"{100 * found:.0f} % hits", flush=True)


def _ours(made: Questions) -> dict[str, Timed]:
    settings = CacheSettings(max_error=0.05, audit_rate=0.02, max_entries=2 * len(made.cached) + 10_000)
    with tempfile.TemporaryDirectory() as folder, SemanticCache(
        made, store=f"sqlite:///{Path(folder) / 'c.db'}", settings=settings, seed=0
    ) as cache:
        for one in made.cached[:-ASKED]:
            cache.put(one, f"answer {one}", scope=SCOPE)
        puts = _timed(lambda one: cache.put(one, f"answer {one}", scope=SCOPE), made.cached[-ASKED:])
        _teach(cache, made)
        while cache._semantic._nearest._builder.busy:  # an index over many entries is built beside the callers
            time.sleep(0.2)
        again, others = [said for said, _ in made.again[:ASKED]], made.others[:ASKED]
        timed = {
            "ours, put": puts,
            "ours, exact": _asked(cache, made.cached[:ASKED]),
            "ours, exact again": _asked(cache, made.cached[:ASKED]),
            "ours, similar": _asked(cache, again),
            "ours, miss": _asked(cache, others),
        }
        _show_index(cache, made, [*again, *others])
        return timed


def _teach(cache: SemanticCache, made: Questions) -> None:
    taught = [*made.again[ASKED:], *((one, one) for one in made.others[ASKED:])]
    for at in np.random.default_rng(0).permutation(len(taught)).tolist():
        said, first = taught[at]
        if cache.lookup(said, scope=SCOPE) is None:
            cache.put(said, f"answer {first}", scope=SCOPE)
    cache.flush()
    assert cache.certificate().live, cache.certificate()


def _show_index(cache: SemanticCache, made: Questions, asked: Sequence[str]) -> None:
    """Print what the search takes, and how many of the nearest it finds; nothing where all are compared."""
    (shelf,) = cache._semantic._nearest._shelves.values()
    if shelf.index is None:
        return
    rows, places, taken, first, eight = shelf.rows[:shelf.index.size], [], [], [], []
    for one in asked:
        began = time.thread_time()
        places.append(set(shelf.index.search(made.vectors[one], 4 * 8).tolist()))  # as many as the cache rescores
        taken.append(time.thread_time() - began)
    for one, found in zip(asked, places, strict=True):
        nearest = np.argsort(-(rows @ made.vectors[one]), kind="stable")[:8].tolist()
        first.append(nearest[0] in found)
        eight.append(len(found.intersection(nearest)) / 8)
    print(f"    {len(shelf):>7,} index alone: {1e3 * statistics.median(taken):.3g} ms CPU; the nearest found in "
          f"{100 * np.mean(first):.1f} %, of the nearest eight {100 * np.mean(eight):.1f} %", flush=True)


def _asked(cache: SemanticCache, questions: Sequence[str]) -> Timed:
    return _timed(lambda one: cache.lookup(one, scope=SCOPE), questions)


def _langchain(made: Questions) -> Timed:
    cache = InMemoryCache()
    for question in made.cached:
        cache.update(question, "m", [Generation(text=f"answer {question}")])
    return _timed(lambda one: cache.lookup(one, "m"), made.cached[:ASKED])


def _gptcache(made: Questions, python: str) -> dict[str, Timed]:
    again, others = [said for said, _ in made.again[:ASKED]], made.others[:ASKED]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "v.npy"
        np.save(file, np.stack([made.vectors[text] for text in (*made.cached, *again, *others)]))
        job = {"vectors": str(file), "questions": made.cached, "again": again, "others": others}
        worker = Path(__file__).with_name("gptcache_worker.py")
        done = subprocess.run([python, str(worker)], input=json.dumps(job) + "\n", capture_output=True, text=True,
                              check=False)
    if done.returncode:
        print(f"    GPTCache failed: {done.stderr.strip().splitlines()[-1]}")
        return {}
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {f"GPTCache, {name}": tuple(row) for name, row in told.items()}


def _timed(work: Callable[[str], object], cases: Sequence[str]) -> Timed:
    rounds = []
    for start in range(0, len(cases), EACH):
        time.sleep(PAUSE_SECONDS)
        rounds.append([_seconds(work, case) for case in cases[start:start + EACH]])
    cpu, wall, found = zip(*(call for each in rounds for call in each), strict=True)
    quiet = min(statistics.median(taken for taken, _, _ in each) for each in rounds)
    return quiet, statistics.median(cpu), statistics.median(wall), sum(found) / len(found)


def _seconds(work: Callable[[str], object], case: str) -> tuple[float, float, bool]:
    cpu, wall = time.thread_time(), time.perf_counter()
    found = work(case)
    return time.thread_time() - cpu, time.perf_counter() - wall, found is not None
