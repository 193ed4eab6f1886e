"""GPTCache 0.1.44 timed in an environment of its own: SQLite and FAISS, everything else at its defaults.

``cache_growth.py`` starts it with one JSON line ``{"vectors": FILE.npy, "questions", "again", "others"}``: a row for
each question, then for each of ``again`` (rewordings of the first) and ``others`` (never asked). Prints one line of
JSON: CPU and wall time in seconds of a put, a hit by the same words, a hit by other words, a miss; see ``timed``.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gptcache import Cache
from gptcache.adapter.api import get, put
from gptcache.manager import CacheBase, VectorBase, get_data_manager
from gptcache.processor.pre import get_prompt
from gptcache.similarity_evaluation.distance import SearchDistanceEvaluation

PUTS = 50
EACH, PAUSE_SECONDS = 50, 0.5
"""As in ``cache_growth.py``."""


def timed(work: Callable[..., Any], cases: Sequence[Any]) -> tuple[float, float, float, float]:
    """Return CPU seconds of the process in the quietest round, CPU and wall seconds over all (medians), and the share
    of cases that gave something.
    """
    cpu, wall, found = [], [], 0
    for place, case in enumerate(cases):
        if place % EACH == 0:
            time.sleep(PAUSE_SECONDS)
        began, started = time.process_time(), time.perf_counter()
        answer = work(*case)
        cpu.append(time.process_time() - began)
        wall.append(time.perf_counter() - started)
        found += answer is not None
    quiet = min(statistics.median(cpu[start:start + EACH]) for start in range(0, len(cpu), EACH))
    return quiet, statistics.median(cpu), statistics.median(wall), found / len(cases)


def main() -> None:
    job = json.loads(sys.stdin.readline())
    questions, again, others = job["questions"], job["again"], job["others"]
    rows = np.load(job["vectors"])
    vectors = dict(zip([*questions, *again, *others], rows, strict=True))
    with tempfile.TemporaryDirectory() as folder:
        manager = get_data_manager(
            CacheBase("sqlite", sql_url=f"sqlite:///{Path(folder) / 'g.db'}"),
            VectorBase("faiss", dimension=rows.shape[1], index_path=str(Path(folder) / "g.index")),
            max_size=2 * len(questions) + 10_000,
        )
        cache = Cache()
        cache.init(pre_embedding_func=get_prompt, embedding_func=lambda text, **_: vectors[text], data_manager=manager,
                   similarity_evaluation=SearchDistanceEvaluation())
        known = questions[:-PUTS]
        for start in range(0, len(known), 5_000):
            part = known[start:start + 5_000]
            manager.import_data(part, [f"answer {one}" for one in part], [vectors[one] for one in part],
                                [None] * len(part))
        told: dict[str, Any] = {
            "put": timed(lambda one: put(one, f"answer {one}", cache_obj=cache), [(one,) for one in questions[-PUTS:]]),
        }
        for name, cases in (("exact", known[:len(again)]), ("similar", again), ("miss", others)):
            told[name] = timed(lambda one: get(one, cache_obj=cache), [(one,) for one in cases])
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
