"""Is the certificate true? Many seeded runs of each stream, one line of JSON each, and the table made from the lines.

``cache.py --rows validity`` calls this. Runs that the file holds already are not played again, so a long job can be
stopped and resumed; delete the file after the policy was changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

FIRST_SEED = 10_000
"""Seeds from here on were used for nothing else, but 10,005 for when misses alarm and 10,057 on squad for when they
bring doubt; 0 to 4, 1,000 to 3,020 and 40,000 to 40,039 were used in design."""

WINDOW = 350
"""So many lookups after a shift the alarm should have come."""

Key = tuple[str, str, str, float, int]


def validate(file: Path, sets: Sequence[str], encoders: Sequence[str], errors: Sequence[float], runs: int,
             kinds: Sequence[str], play: Callable[[str, str, float, int, bool], Any]) -> None:
    """Play what the file lacks, a seed at a time, and print the table of all.

    A shift tells nothing where hardly a run is certified before it: not at less than .02, nor on nlupp-banking.
    """
    done = {_key(line): line for line in _read(file)}
    with file.open("a", encoding="utf-8") as out:
        for seed in range(FIRST_SEED, FIRST_SEED + runs):
            for kind in kinds:
                for name in sets:
                    for encoder in encoders:
                        for allowed in errors:
                            key = (kind, name, encoder, allowed, seed)
                            if key not in done and (kind == "stream" or (allowed >= 0.02 and name != "nlupp-banking")):
                                run = play(name, encoder, allowed, seed, kind == "shift")
                                done[key] = {**dict(zip(KEY, key, strict=True)), **_told(run)}
                                out.write(json.dumps(done[key]) + "\n")
                                out.flush()
    wanted = [line for (kind, name, encoder, allowed, _), line in done.items()
              if kind in kinds and name in sets and encoder in encoders and allowed in errors]
    print_table(wanted)


KEY = ("kind", "set", "encoder", "max_error", "seed")


def print_table(lines: Iterable[dict[str, Any]]) -> None:
    """Print a row for each kind, set, encoder and allowed error."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault(_key(line)[:-1], []).append(line)
    for (kind, name, encoder, allowed), runs in sorted(groups.items()):
        hits, wrong = np.array([run["hits"] for run in runs]), np.array([run["wrong"] for run in runs])
        per_hit = 100 * wrong.sum() / max(hits.sum(), 1)
        print(f"    {kind} {name}, {encoder}, {allowed:g}: over in {_over(hits, wrong, allowed)} of {len(runs)}; "
              f"certified in {sum(run['first'] is not None for run in runs)}; hits "
              f"{100 * np.median(hits / [run['lookups'] for run in runs]):.1f} %, wrong {per_hit:.2f} % of them all"
              + (_shifted(runs, allowed) if kind == "shift" else
                 f"; false alarms in {sum(bool(run['alarms']) for run in runs)}"))


def _shifted(runs: Sequence[dict[str, Any]], allowed: float) -> str:
    served = [run for run in runs if run["first"] is not None and run["first"] < run["lookups"] // 2]
    delays = sorted(run["delay"] for run in served if run["delay"] is not None)
    if not delays:
        return f"; certified before the shift in {len(served)}"
    outside = _over(np.array([run["hits"] - run["window_hits"] for run in runs]),
                    np.array([run["wrong"] - run["window_wrong"] for run in runs]), allowed)
    hits, wrong = (np.median([run[f"window_{what}"] for run in served]) for what in ("hits", "wrong"))
    before, after = (100 * np.median([run[f"{what}_share"] for run in served]) for what in ("before", "last"))
    return (f"; certified before the shift in {len(served)}, then an alarm in {len(delays)}, after "
            f"{np.median(delays):.0f} lookups (p90 {delays[int(0.9 * len(delays))]}, most {delays[-1]}), "
            f"within {WINDOW} "
            f"in {sum(delay <= WINDOW for delay in delays)}; the {WINDOW} lookups after the shift: {wrong:.0f} wrong "
            f"of {hits:.0f} hits; over outside of them in {outside}; hits in the eighth before the shift "
            f"{before:.0f} %, in the last eighth {after:.0f} %")


def _over(hits: np.ndarray, wrong: np.ndarray, allowed: float) -> int:
    return int((wrong > allowed * hits + 2 * np.sqrt(allowed * hits)).sum())


def _told(run: Any) -> dict[str, Any]:
    lookups = len(run.hit)
    half, eighth = lookups // 2, lookups // 8
    window = slice(half, half + WINDOW)
    late = [at - half for at in run.alarms if at >= half]
    return {
        "lookups": lookups, "hits": int(run.hit.sum()), "wrong": int(run.wrong.sum()), "first": run.first,
        "alarms": run.alarms, "delay": late[0] if late else None, "window_hits": int(run.hit[window].sum()),
        "window_wrong": int(run.wrong[window].sum()), "before_share": float(run.hit[half - eighth:half].mean()),
        "last_share": float(run.hit[-eighth:].mean()),
    }


def _key(line: dict[str, Any]) -> Key:
    kind, name, encoder, allowed, seed = (line[part] for part in KEY)
    return kind, name, encoder, allowed, seed


def _read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []
