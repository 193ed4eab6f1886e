"""What feedback says of how people are served over time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SatisfactionFell:
    """The event "people are served worse than before".

    ``source`` is the kind of feedback that says so, None for all of a namespace together. ``feedback`` is the number
    of the namespace's feedback that tipped it and ``at`` that feedback's time (seconds since the epoch, UTC).
    ``before`` is what the mean reward was at least (lower confidence bound, 95 %), ``after`` the mean over the last
    twenty or so, both in [-1, 1]; see ``memory.satisfaction`` for what a reward is here.
    """

    namespace: str
    source: str | None
    feedback: int
    at: float
    before: float
    after: float
