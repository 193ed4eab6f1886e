"""Looking an answer up: the exact tier first, then the semantic one; what is stale is not served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from neuralcache_plugins.contracts import CachedAnswer
from neuralcache_plugins.errors import EncoderError, MissingExtraError, StoreClosedError, StoreError
from neuralcache_plugins.semantic_cache.counts import Counts
from neuralcache_plugins.semantic_cache.exact import Exact, ExactTier
from neuralcache_plugins.semantic_cache.keys import Asked
from neuralcache_plugins.semantic_cache.policy import NOT_CERTIFIED
from neuralcache_plugins.semantic_cache.proposals import Proposal
from neuralcache_plugins.semantic_cache.semantic import Found, SemanticTier

UNKNOWN = "never asked"
EXPIRED = "expired"
CHANGED = "documents changed"
NO_STORE = "store failed"
OTHERWISE = "similar questions mean something else"
NOT_SURE = "not sure enough of a similar answer"
AUDITED = "audited"


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

    def withheld(self) -> Look:
        """Return this look, as a miss if its answer is to be audited: the caller then makes a fresh one."""
        if self.found is None or not self.is_semantic or not self.proposal.audit:
            return self
        return replace(self, answer=None, reason=AUDITED, found=replace(self.found, served=None))


class LookStage:
    """Looks questions up. Reads only."""

    def __init__(self, exact: ExactTier, semantic: SemanticTier, counts: Counts, *, stale_seconds: float) -> None:
        self._exact = exact
        self._semantic = semantic
        self._counts = counts
        self._stale_seconds = stale_seconds

    def exactly(self, asked: Sequence[Asked], *, now: float) -> list[Look]:
        """Look in the exact tier alone: two queries at most. A failing store has no answers."""
        return self._exactly(asked, now)[0]

    def everywhere(self, asked: Sequence[Asked], *, now: float, coins: Sequence[float],
                   shows: bool = False) -> list[Look]:
        """Look in both tiers: what the exact one does not have is looked up in the semantic one, all at once.

        ``shows`` as in ``SemanticTier.find``.
        """
        looks, read = self._exactly(asked, now)
        unanswered = [place for place, look in enumerate(looks) if look.answer is None]
        if self._semantic.active and unanswered and read is not None:
            tossed = [coins[place] for place in unanswered]
            found = self._semantically([looks[place] for place in unanswered], read, now, tossed, shows)
            for place, look in zip(unanswered, found, strict=True):
                looks[place] = look
        return looks

    def _exactly(self, asked: Sequence[Asked], now: float) -> tuple[list[Look], Exact | None]:
        try:
            read = self._exact.find([each.key for each in asked])
        except StoreClosedError:
            raise
        except StoreError as error:
            self._counts.without("store", error)
            return [Look(each, reason=NO_STORE) for each in asked], None
        return [self._judge(each, read.answers.get(each.key), read.mark, now) for each in asked], read

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

    def _semantically(self, looks: list[Look], read: Exact, now: float, coins: Sequence[float],
                      shows: bool) -> list[Look]:
        try:
            found = self._semantic.find([look.asked for look in looks], now=now, coins=coins, mark=read.mark,
                                        head=read.head, shows=shows)
        except StoreError as error:
            self._counts.without("store", error)
            return looks
        except (EncoderError, MissingExtraError) as error:
            self._counts.without("encoder", error)
            return looks
        return [_together(look, one) for look, one in zip(looks, found, strict=True)]


def _together(look: Look, found: Found) -> Look:
    # why the question's own answer is not served says more than why another's is not
    reason = look.reason
    if reason == UNKNOWN and found.near:
        reason = _why_not(found.proposal)
    return Look(look.asked, found.served, look.stale, look.mark, "" if found.served else reason, found)


def _why_not(proposal: Proposal) -> str:
    """Return one of a few reasons, without scores or words of the question: misses are counted by it."""
    if proposal.candidate is None:
        return OTHERWISE
    return NOT_CERTIFIED if NOT_CERTIFIED in proposal.reasons else NOT_SURE
