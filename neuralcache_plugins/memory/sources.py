"""What each source of feedback counts: as much as the settings say, and as far as explicit feedback bears it out.

Explicit is what people say of documents: the source ``user``, and ``user:...``. It is the yardstick, and counts in
full. Whenever another source and explicit feedback speak of one ranking, the source agrees or disagrees; with p the
share (a prior of ``PRIOR`` agreements included) in which it agrees, its rewards count 2p - 1: were explicit feedback
the truth and errors symmetric, that is the mean of the truth given what the source says. A source that nothing
contradicts counts in full, so with one source alone, or with none but explicit ones, nothing changes at all.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from neuralcache_plugins.contracts import FeedbackGiven

EXPLICIT = "user"
PRIOR = 10.0
MOST_COMPARED = 300.0
"""Older comparisons count the less from so many on: a source may mend its ways."""

MOST_SOURCES = 64
MOST_RANKINGS = 256
"""Bounds: sources compared, and rankings of which is remembered what was told. Those heard of least recently go."""

MOST_TOLD = 16
"""Of so many documents of one feedback at most; the first named."""

OTHERS = 0.5
"""Naming altogether other documents as helpful is half a disagreement: more than one may help."""


def is_explicit(source: str) -> bool:
    """Return whether a source is people's own word."""
    return source == EXPLICIT or source.startswith(f"{EXPLICIT}:")


def configured(source: str, weights: Mapping[str, float]) -> float:
    """Return the weight that the settings give: of the longest name that is the source or what stands before a colon.

    So ``marker`` stands for ``marker:gratitude`` too, unless that is named itself. Unnamed sources weigh 1.
    """
    name = source
    while name not in weights:
        name, colon, _ = name.rpartition(":")
        if not colon:
            return 1.0
    return weights[name]


class Sources:
    """How far each source agreed with explicit feedback, and what was told of recent rankings."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = weights
        self.compared: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self.told: OrderedDict[str, dict[str, dict[str, float]]] = OrderedDict()

    def weigh(self, event: FeedbackGiven) -> float:
        """Take in one feedback and return what it counts, in [0, 1]. O(documents named and sources of its ranking)."""
        if configured(event.source, self._weights) == 0.0:
            return 0.0  # switched off: it is as if it had never been said
        self._compare(event)
        return self.weight(event.source)

    def weight(self, source: str) -> float:
        """Return what a source counts, in [0, 1]."""
        return configured(source, self._weights) * self.reliability(source)

    def reliability(self, source: str) -> float:
        """Return how far explicit feedback bears a source out, in [0, 1]; 1 where nothing contradicts it."""
        agreed, disagreed = self.compared.get(source, (0.0, 0.0))
        if disagreed == 0.0:
            return 1.0
        return max(0.0, 2.0 * (agreed + PRIOR) / (agreed + disagreed + PRIOR) - 1.0)

    def table(self) -> dict[str, Any]:
        """Return all of it as JSON values, for ``restore``."""
        return {"compared": list(self.compared.items()), "told": list(self.told.items())}

    def restore(self, table: dict[str, Any]) -> None:
        """Put back what ``table`` gave."""
        self.compared = OrderedDict((source, (agreed, not_so)) for source, (agreed, not_so) in table["compared"])
        self.told = OrderedDict(table["told"])

    def _compare(self, event: FeedbackGiven) -> None:
        rewards = {name: reward for name, reward in event.rewards[:MOST_TOLD] if reward}
        told = self.told.setdefault(event.ranking_id, {})
        self.told.move_to_end(event.ranking_id)
        if len(self.told) > MOST_RANKINGS:
            self.told.popitem(last=False)
        explicit = is_explicit(event.source)
        for source, others in told.items():
            if explicit and not is_explicit(source):
                self._count(source, others, rewards)
            elif not explicit and is_explicit(source):
                self._count(event.source, rewards, others)
        if len(told) < MOST_SOURCES:
            name = EXPLICIT if explicit else event.source
            told[name] = {**told.get(name, {}), **rewards}

    def _count(self, source: str, said: Mapping[str, float], truth: Mapping[str, float]) -> None:
        """Count one comparison, worth 1 in all: by shares of what both speak of, or half where they praise others."""
        common = {name: reward for name, reward in said.items() if name in truth}
        size = sum(map(abs, common.values()))
        if size:
            agreed = sum(abs(reward) for name, reward in common.items() if reward * truth[name] > 0) / size
            disagreed = 1.0 - agreed
        elif max(said.values(), default=0.0) > 0 < max(truth.values(), default=0.0):
            agreed, disagreed = 0.0, OTHERS
        else:
            return
        before = self.compared.pop(source, (0.0, 0.0))
        kept = min(1.0, MOST_COMPARED / (sum(before) + 1.0))
        self.compared[source] = before[0] * kept + agreed, before[1] * kept + disagreed
        if len(self.compared) > MOST_SOURCES:
            self.compared.popitem(last=False)
