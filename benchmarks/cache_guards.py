"""What each guard of the cache would lose and stop, were it a veto: the table in ``semantic_cache/guards.py``.

``cache.py --rows guards`` calls this. Pairs are a question of a set and each of its three nearest others; a veto of a
pair with the same answer loses a hit, one of a pair with another answer stops a mistake. The last line has right pairs
from a set on which nothing was designed: turns of conversations and what people made of them to stand alone.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from cache_streams import Stream
from learning_sets import _lines

from neuralcache_plugins.semantic_cache.features import CANDIDATES
from neuralcache_plugins.semantic_cache.guards import GUARDS, VETOES, differences
from neuralcache_plugins.semantic_cache.parsing import Question, parse

REWRITTEN = ("mtrag-clapnq", "mtrag-fiqa")


def show_guards(source: Stream) -> None:
    """Print, for each guard, how often it speaks between near questions with the same answer and with others."""
    near = source.near[:, :CANDIDATES]
    right = source.answers[near] == source.answers[:, None]
    spoken: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for place, others in enumerate(near.tolist()):
        for other, same in zip(others, right[place].tolist(), strict=True):
            spoken[same].update({each.guard for each in differences(source.questions[place], source.questions[other])})
    totals = {True: int(right.sum()), False: int(np.size(right) - right.sum())}
    print(f"    {totals[True]:,} right pairs, {totals[False]:,} wrong ones")
    for guard in GUARDS:
        lost, stopped = (100 * spoken[same][guard] / totals[same] for same in (True, False))
        print(f"    {guard} ({'veto' if guard in VETOES else 'feature'}): loses {lost:.3g} %, stops {stopped:.3g} %")


def show_rewritten(data: Path) -> None:
    """Print how many turns of conversations all vetoes together keep from their own stand-alone rewrites."""
    turns = [turn for name in REWRITTEN for turn in _lines(data / name / "queries.jsonl.gz")]
    pairs = [(parse(turn["text"]), parse(turn["rewrite"])) for turn in turns
             if turn.get("rewrite") not in (None, "", turn["text"])]
    vetoed = Counter(guard for pair in pairs for guard in _vetoes(*pair))
    lost = sum(bool(_vetoes(*pair)) for pair in pairs)
    print(f"    all vetoes together lose {lost} of {len(pairs)} right pairs, by guard: {dict(vetoed)}")


def _vetoes(ours: Question, theirs: Question) -> set[str]:
    return {each.guard for each in differences(ours, theirs) if each.veto}
