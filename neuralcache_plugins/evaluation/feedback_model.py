"""How simulated people react to what they are shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

from neuralcache_plugins.contracts import Matrix
from neuralcache_plugins.errors import InvalidInputError

Adversary = Literal["random", "wrong", "topmost", "push"]
ADVERSARIES: tuple[Adversary, ...] = ("random", "wrong", "topmost", "push")


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackModel:
    """Who rewards what, and when. The default rewards every right document that is shown, at once.

    ``click_probability``: share of the questions whose asker reacts at all. ``noise``: share of the honest reactions
    that reward a wrong document that was shown, drawn evenly. ``position_bias``: a document at rank r is looked at
    with probability r^-position_bias (Craswell et al., WSDM 2008, as a power law). ``delay``: feedback arrives that
    many questions later. ``adversary_share``: share of the reactions that are hostile, of kind ``adversary``:
    "random" rewards anything shown, "wrong" a wrong document, "topmost" the first wrong one, "push" one fixed document
    whenever it is shown. From ``drift_at`` (a share of the stream) on, about ``drift_share`` of the documents have
    swapped their meaning with their nearest one.
    """

    click_probability: float = 1.0
    noise: float = 0.0
    position_bias: float = 0.0
    delay: int = 0
    adversary_share: float = 0.0
    adversary: Adversary = "wrong"
    drift_at: float | None = None
    drift_share: float = 0.5

    def __post_init__(self) -> None:
        for name in ("click_probability", "noise", "adversary_share", "drift_share", "drift_at"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise InvalidInputError(f"{name} must be in [0, 1], got {value}")
        if self.position_bias < 0 or self.delay < 0:
            raise InvalidInputError(
                f"position_bias and delay must not be negative, got {self.position_bias} and {self.delay}")
        if self.adversary not in ADVERSARIES:
            raise InvalidInputError(f"adversary must be one of {', '.join(ADVERSARIES)}, got {self.adversary!r}")

    def describe(self) -> str:
        """Return what differs from honest, complete and immediate feedback, in one line."""
        told = [
            f"{field.name.replace('_', ' ')} {getattr(self, field.name)}" for field in fields(self)
            if getattr(self, field.name) != field.default
        ]
        return ", ".join(told) or "every right document that is shown is rewarded"

    def rewarded(
        self, shown: Sequence[int], right: Sequence[int], *, pushed: int, rng: np.random.Generator
    ) -> list[int]:
        """Return which of the ``shown`` documents are rewarded; none when nobody reacts."""
        if rng.random() >= self.click_probability:
            return []
        wrong = [one for one in shown if one not in right]
        if rng.random() < self.adversary_share:
            return self._hostile(shown, wrong, pushed, rng)
        meant = [one for one in shown if one in right]
        if rng.random() < self.noise:
            meant = _one_of(wrong, rng)
        return [one for one in meant if rng.random() < self._examined(shown.index(one) + 1)]

    def _hostile(self, shown: Sequence[int], wrong: Sequence[int], pushed: int, rng: np.random.Generator) -> list[int]:
        if self.adversary == "push":
            return [pushed] if pushed in shown else []
        if self.adversary == "topmost":
            return list(wrong[:1])
        return _one_of(shown if self.adversary == "random" else wrong, rng)

    def _examined(self, rank: int) -> float:
        return math.pow(rank, -self.position_bias)


def nearest_swaps(rows: Matrix, share: float, rng: np.random.Generator) -> list[int]:
    """Return a meaning for each of the unit ``rows`` (n, d): about ``share`` of them swap with their nearest one."""
    similar = rows @ rows.T
    np.fill_diagonal(similar, -2.0)
    meaning = list(range(len(rows)))
    taken: set[int] = set()
    for one in rng.permutation(len(rows)).tolist():
        other = int(similar[one].argmax())
        if len(taken) < share * len(rows) and not taken & {one, other}:
            meaning[one], meaning[other] = other, one
            taken |= {one, other}
    return meaning


def _one_of(shown: Sequence[int], rng: np.random.Generator) -> list[int]:
    return [shown[int(rng.integers(len(shown)))]] if shown else []
