"""Who gets the credit when a judgement is about an answer and not about one of the documents behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

CREDITED = 3
"""Where nobody knows which documents an answer used, its first so many share the credit."""

LEAST = 0.05
"""Less credit than this is not worth telling."""


def shared(ids: Sequence[str], value: float, *, used: Mapping[str, float] | None = None) -> dict[str, float]:
    """Return the reward of each document shown, given what the whole answer was worth, in [-1, 1].

    ``ids`` are the documents in the order shown. ``used`` tells in [0, 1] how far each went into the answer; without
    it the one at rank r (from 0) counts 1 / (1 + r), as readers and models look from the top. A document that is shown
    twice is credited once. O(k).
    """
    if used is None:
        shares = {name: 1.0 / (1.0 + rank) for rank, name in reversed(list(enumerate(ids[:CREDITED])))}
    else:
        shares = {name: min(1.0, max(0.0, float(share))) for name, share in used.items()}
    names = [name for name in dict.fromkeys(ids) if abs(value) * shares.get(name, 0.0) >= LEAST]
    return {name: value * shares[name] for name in names}
