"""Looking an answer up: the exact tier first, then the semantic one; what is stale is not served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from neuralcache_plugins.contracts import CachedAnswer
from neuralcache_plugins.errors import EncoderError, MissingExtraError, StoreClosedError, StoreError
from neuralcache_plugins.semantic_cache.counts import Counts
from neuralcache_plugins.semantic_cache.exact import ExactTier
from neuralcache_plugins.semantic_cache.keys import Asked
from neuralcache_plugins.semantic_cache.semantic import Found, Proposal, SemanticTier

UNKNOWN = "never asked"
EXPIRED = "expired"
CHANGED = "documents changed"
NO_STORE = "store failed"


@dataclass(frozen=True, slots=True)
class Look:
    """What was found for one question.

    ``answer`` may be served. ``stale`` has expired, so lately that it may be served while a fresh one is made. ``mark``
    is the store's from before the look, None if the store failed: then nothing may be put on the strength of it.
    """

    asked: Asked
    answer: CachedAnswer | None = None
    stale: CachedAnswer | None = None
    mark: int | None = None
    reason: str = ""
    found: Found | None = None

    @property
    def is_semantic(self) -> bool:
        """Whether the answer is another question's."""
        return self.found is not None and self.found.served is not None

    @property
    def proposal(self) -> Proposal:
        """What the decider said; an empty one if it was not asked."""
        return Proposal() if self.found is None else self.found.proposal


class LookStage:
    """Looks questions up. Reads only."""

    def __init__(self, exact: ExactTier, semantic: SemanticTier, counts: Counts, *, stale_seconds: float) -> None:
        self._exact = exact
        self._semantic = semantic
        self._counts = counts
        self._stale_seconds = stale_seconds

    def exactly(self, asked: Sequence[Asked], *, now: float) -> list[Look]:
        """Look in the exact tier alone: two queries at most. A failing store has no answers."""
        try:
            found = self._exact.find([each.key for each in asked])
        except StoreClosedError:
            raise
        except StoreError as error:
            self._counts.without("store", error)
            return [Look(each, reason=NO_STORE) for each in asked]
        return [self._judge(each, found.answers.get(each.key), found.mark, now) for each in asked]

    def everywhere(self, asked: Sequence[Asked], *, now: float, coins: Sequence[float]) -> list[Look]:
        """Look in both tiers."""
        looks = self.exactly(asked, now=now)
        if not self._semantic.active:
            return looks
        return [look if look.answer is not None or look.mark is None else self._semantically(look, now, coin)
                for look, coin in zip(looks, coins, strict=True)]

    def _judge(self, asked: Asked, answer: CachedAnswer | None, mark: int, now: float) -> Look:
        if answer is None:
            return Look(asked, mark=mark, reason=UNKNOWN)
        # whoever names documents wants an answer made from exactly these: one more may hold a better one
        if asked.documents and tuple(sorted(answer.documents)) != asked.documents:
            return Look(asked, mark=mark, reason=CHANGED)
        if answer.expires_at is None or now < answer.expires_at:
            return Look(asked, answer, mark=mark)
        stale = answer if now < answer.expires_at + self._stale_seconds else None
        return Look(asked, stale=stale, mark=mark, reason=EXPIRED)

    def _semantically(self, look: Look, now: float, coin: float) -> Look:
        try:
            found = self._semantic.find(look.asked, now=now, coin=coin)
        except StoreError as error:
            self._counts.without("store", error)
            return look
        except (EncoderError, MissingExtraError) as error:
            self._counts.without("encoder", error)
            return look
        reason = look.reason if not found.proposal.reasons else found.proposal.reasons[0]
        return Look(look.asked, found.served, look.stale, look.mark, "" if found.served else reason, found)
