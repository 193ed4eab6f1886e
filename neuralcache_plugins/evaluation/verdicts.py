"""What a replay supports, in words, and what it cannot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from neuralcache_plugins.evaluation.replayed import Replay
from neuralcache_plugins.evaluation.rescoring import Refold
from neuralcache_plugins.evaluation.uncertainty import Interval

if TYPE_CHECKING:
    from neuralcache_plugins.evaluation.replaying import Counts, Row

ENOUGH_FEEDBACK = 30
"""With fewer graded rankings no gain is claimed: a bootstrap of so few is too sure of itself."""

ENOUGH_SAMPLES = 30.0
"""With a smaller effective sample size no counterfactual gain is claimed."""

MOST_OF_ONE = 0.2
"""No single ranking may carry more than this share of the weights."""

MISSING_WEIGHT = 0.1
"""Weights have mean 1; further from it, chance has not tried enough of what the other ranker would have chosen."""

TOP_ONLY = 0.95
"""With a greater share of the rewards on the first document shown, the log says nothing about other orders."""

FEW_QUESTIONS = 10


def said(
    replay: Replay, *, rows: Sequence[Row], counts: Counts, refold: Refold | None, ignored: Sequence[str]
) -> Replay:
    """Return the replay with its claims and warnings."""
    claims = [*_of_replay(replay), *_of_exploration(replay)]
    warnings = [*_doubts(replay, rows, counts), *_doubts_of_exploration(replay, rows), *_doubts_of_recasting(refold)]
    if ignored:
        warnings.append(f"A log cannot tell what {', '.join(ignored)} would have changed: the change was left out.")
    return replace(replay, claims=tuple(claims), warnings=tuple(warnings))


def compared(gain: Interval, *, what: str, over: str) -> str:
    """Return one sentence on a gain that says whether it is beyond noise."""
    sure = f"{gain.signed()}, {round(100 * gain.confidence)} % interval"
    if gain.above_zero:
        return f"{what} is better than {over} ({sure})"
    if gain.below_zero:
        return f"{what} is worse than {over} ({sure})"
    return f"{what} does not differ from {over} beyond noise ({sure})"


def _of_replay(replay: Replay) -> Iterator[str]:
    if len(replay) < ENOUGH_FEEDBACK or _at_top(replay) >= TOP_ONLY:
        return
    for name, gains in replay.gains.items():
        order = name.removeprefix("over ")
        yield compared(gains["RR"], what="Reciprocal rank of rewarded documents in the replayed order",
                       over=f"in the {order} order") + f", {len(replay)} rankings"


def _of_exploration(replay: Replay) -> Iterator[str]:
    found = replay.counterfactual
    if found is None or not _is_enough(replay):
        return
    yield compared(found.gain, what="Reward of the first document, had the replayed ranker chosen it,",
                   over="what was logged") + f", {found.rankings} explored rankings, doubly robust"


def _doubts(replay: Replay, rows: Sequence[Row], counts: Counts) -> Iterator[str]:
    if not counts.rankings:
        yield "The log holds no rankings: nothing can be said."
        return
    graded, told = len(replay), sum(bool(row.rewards) for row in rows)
    if graded < ENOUGH_FEEDBACK:
        yield (f"Only {graded} rankings have feedback that prefers some shown documents to others; below "
               f"{ENOUGH_FEEDBACK} no gain is claimed.")
    if graded:
        yield from _doubts_of_position(replay)
    if told - graded > 0.5 * told:
        yield (f"{told - graded} of {told} rankings with feedback reward nothing or everything that was shown; "
               "they say nothing about its order.")
    if counts.without_vector > 0.05 * counts.rankings:
        yield (f"{counts.without_vector} of {counts.rankings} rankings hold no question vector: "
               "they cannot be learned from.")
    questions = len(set(replay.clusters))
    if 0 < questions < FEW_QUESTIONS:
        yield f"The feedback is about {questions} questions only: intervals over so few are too narrow."


def _doubts_of_position(replay: Replay) -> Iterator[str]:
    if _at_top(replay) >= TOP_ONLY:
        yield (f"{_at_top(replay):.0%} of the rewards went to the first document shown: such a log cannot tell whether "
               "another order would have been better, so no gain is claimed.")
    yield ("People reward what they see: feedback favours the order that was shown, and whatever resembles it. "
           "Only exploration takes that out.")


def _doubts_of_exploration(replay: Replay, rows: Sequence[Row]) -> Iterator[str]:
    found = replay.counterfactual
    if found is None:
        if replay.rankings:
            yield ("No exploration was recorded (every propensity is 1), so nothing can be claimed about orders that "
                   "were never shown; NEURALCACHE_RERANK_EXPLORATION=0.05 records it from now on.")
        return
    if found.rankings < replay.rankings:
        yield f"{found.rankings} of {replay.rankings} rankings were explored; the estimates speak of those alone."
    if not _is_enough(replay):
        yield (f"The effective sample size is {found.effective_sample_size:.1f} and one ranking carries "
               f"{found.largest_weight_share:.0%} of the weights, whose mean is {found.mean_weight:.2f}: too little "
               f"for a counterfactual claim (wanted: at least {ENOUGH_SAMPLES:.0f}, at most {MOST_OF_ONE:.0%}, and "
               f"1.00 within {MISSING_WEIGHT:.2f}).")
    share = float(np.mean([len(row.ids) / max(1, row.candidates) for row in rows if row.propensity < 1.0]))
    if share < 0.999:
        yield (f"Of the candidates {share:.0%} were shown: the estimates take it that the replayed ranker's first "
               "choice is among them.")


def _doubts_of_recasting(refold: Refold | None) -> Iterator[str]:
    if refold is None or not refold.recast + refold.kept:
        return
    yield ("The cold order was recomputed among the documents shown; what other weights would have brought up from "
           "the rest is not in the log.")
    if refold.kept:
        yield (f"For {refold.kept} of {refold.recast + refold.kept} rankings the log does not determine the cold order "
               "under these weights (fewer than three documents shown, a scorer, or other settings at the time); "
               "their logged cold order was kept.")


def _at_top(replay: Replay) -> float:
    """Return the share of the graded rankings whose first rewarded document was the first one shown."""
    return float(replay.values["first"][:, 0].mean())


def _is_enough(replay: Replay) -> bool:
    found = replay.counterfactual
    return (found is not None and found.effective_sample_size >= ENOUGH_SAMPLES
            and found.largest_weight_share <= MOST_OF_ONE and abs(found.mean_weight - 1.0) <= MISSING_WEIGHT)
