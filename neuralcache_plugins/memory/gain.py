"""What the served order gained over the retriever's, as far as feedback tells."""

from __future__ import annotations

import math

from neuralcache_plugins.contracts import RankingServed


class Gain:
    """Running mean of "reciprocal rank as served less reciprocal rank in the retriever's order", with its spread.

    Counted among the documents shown, for those that helped: what was not shown got no feedback, so this says
    nothing about it. Mean and variance by Welford's method (Technometrics 4, 1962).
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self.squares = 0.0

    def observe(self, ranking: RankingServed, rewards: dict[str, float]) -> None:
        """Take in one feedback about a ranking whose retriever's opinion is on record."""
        prior = ranking.signals.get("prior")
        helped = [rank for rank, name in enumerate(ranking.document_ids) if rewards.get(name, 0.0) > 0]
        if prior is None or not helped or not any(prior):
            return
        by_prior = sorted(range(len(prior)), key=lambda rank: (-prior[rank], ranking.positions[rank]))
        served = 1.0 / (1.0 + min(helped))
        retrieved = 1.0 / (1.0 + min(by_prior.index(rank) for rank in helped))
        self.count += 1
        step = served - retrieved - self.mean
        self.mean += step / self.count
        self.squares += step * (served - retrieved - self.mean)

    def interval(self) -> tuple[float, float] | None:
        """Return the 95 % interval of the mean by the normal approximation; None below 20 feedbacks."""
        if self.count < 20:
            return None
        half = 1.96 * math.sqrt(self.squares / (self.count - 1) / self.count)
        return self.mean - half, self.mean + half
