"""Who gets the credit when a judgement is about an answer and not about one of the documents behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from neuralcache_plugins.errors import InvalidInputError

LEAST = 0.05
"""Less credit than this is not worth telling."""


def checked_shares(used: Any) -> dict[str, float] | None:
    """Return a copy of ``used`` for ``shared``; ``InvalidInputError`` if it does not map ids to numbers."""
    if used is None:
        return None
    if not isinstance(used, Mapping) or not all(
        isinstance(name, str) and isinstance(share, Real) for name, share in used.items()
    ):
        raise InvalidInputError(f"used must map ids of documents to shares in [0, 1], got {used!r}")
    return {name: float(share) for name, share in used.items()}


def shared(ids: Sequence[str], value: float, *, used: Mapping[str, float] | None = None) -> dict[str, float]:
    """Return the reward of each document, given what the whole answer was worth, in [-1, 1].

    ``ids`` are the documents in the order shown. ``used`` tells in [0, 1] how far each went into the answer; without it
    the first gets all. Shared with those below it, praise of an answer says of the order only that it is as it is, and
    nothing is learned from it (``benchmarks/markers.py``). O(k).
    """
    shares = dict.fromkeys(ids[:1], 1.0) if used is None else used
    rewards = {name: value * min(1.0, max(0.0, shares.get(name, 0.0))) for name in dict.fromkeys(ids)}
    return {name: reward for name, reward in rewards.items() if abs(reward) >= LEAST}
