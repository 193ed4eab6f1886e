"""Why a ranking is as it is: shares of the signals and the remembered questions, worked out when somebody asks."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from neuralcache_plugins.contracts import (
    Array,
    Event,
    Explanation,
    FeedbackGiven,
    Ranking,
    RankingServed,
    Remembered,
)
from neuralcache_plugins.core import fusion, signals
from neuralcache_plugins.core.trust import COLD, FEATURES
from neuralcache_plugins.errors import StoreError
from neuralcache_plugins.memory import Memory, Near, Origin
from neuralcache_plugins.reranker.stages import Evidence, Learned
from neuralcache_plugins.settings import RerankSettings

MOST_QUESTIONS = 3
"""So many remembered questions are named for one document, the weightiest first."""

LEAST_SHARE = 0.02
"""A question with a smaller share of a document's votes is not named."""

LEAST_MOVE = 0.02
"""Log-odds below this are next to nothing, so no question is said to have caused them."""

VOTES = [FEATURES.index(name) for name in ("near", "middle", "wide")]
OWN_NAMES = {"near": "association", "middle": "association", "wide": "association", "uncommon": "dense"}
"""Features that go by another name among the signals."""


class Sources(NamedTuple):
    """Where explanations look things up. A ranking that somebody keeps must not keep the memory, nor its store."""

    memory: weakref.ref[Memory]
    settings: RerankSettings


class Explainer:
    """Keeps what one ranking was made of, by reference; all arithmetic waits until ``explanation`` is asked for."""

    __slots__ = ("_evidence", "_in_session", "_sources", "_unusable")

    def __init__(self, sources: Sources, evidence: Evidence, unusable: Sequence[int], in_session: bool) -> None:
        self._sources = sources
        self._evidence = evidence
        self._unusable = unusable
        self._in_session = in_session

    def __reduce__(self) -> tuple[Callable[..., None], tuple[()]]:
        # a pickle of the ranking goes where the memory is not; there it has none
        return type(None), ()

    def __deepcopy__(self, _: dict[int, Any]) -> Explainer:
        return self

    def explanation(self, ranking: Ranking) -> Explanation:
        """Return why ``ranking``, which this was made for, is as it is; see ``Ranking.explanation``."""
        learned = self._evidence.learned
        share = 0.0 if learned is None else learned.trust.share(learned.nearness)
        shares = self._shares(share)
        notes = [*self._of_learning(share, ranking), *self._of_choice(ranking), *self._of_change(ranking)]
        questions: tuple[tuple[Remembered, ...], ...] = ((),) * len(ranking)
        if learned is not None and share > 0:
            look = _Lookup(self._sources.memory(), ranking.namespace)
            voters = _Voters(learned, shares, look)
            questions = tuple(
                tuple(voters.of(int(position), name))
                for position, name in zip(ranking.positions, ranking.ids, strict=True)
            )
            notes += look.trouble()
        return Explanation(
            shares={name: values[ranking.positions] for name, values in shares.items()},
            candidates=len(self._evidence.cold),
            learned=share,
            questions=questions,
            notes=tuple(notes),
        )

    def _shares(self, share: float) -> dict[str, Array]:
        """Return what each signal added to the final log-probabilities of all candidates, (n,) each."""
        shares = self._cold_shares()
        learned = self._evidence.learned
        if learned is None or share == 0.0:
            return shares
        weights = learned.trust.weights_at(learned.nearness)
        kept = (1.0 - share) + share * weights[COLD]
        fallback = share * weights[VOTES].sum()
        shares = _through(shares, self._evidence.cold, kept=kept, fallback=fallback)
        table = learned.features.table.copy()
        # without votes the association repeats the cold order, and that part was the cold signals' doing
        table[:, VOTES] -= _fallback(self._evidence.cold)[:, None]
        moved = share * weights * (table - table.mean(axis=0))
        for column, feature in enumerate(FEATURES):
            if column != COLD:
                name = OWN_NAMES.get(feature, feature)
                shares[name] = shares.get(name, 0.0) + moved[:, column]
        if learned.fruitless is not None:
            shares["rejection"] = shares["rejection"] + learned.fruitless - learned.fruitless.mean()
        return shares

    def _cold_shares(self) -> dict[str, Array]:
        found, settings = self._evidence.signals, self._sources.settings
        dense = found["dense"].copy()
        dense[list(self._unusable)] = np.nan
        terms = fusion.cold_terms(
            found["prior"], dense, found["lexical"],
            dense_weight=settings.dense_weight, lexical_weight=settings.lexical_weight,
        )
        terms["narrative"] = np.zeros(len(dense))
        if self._in_session:
            terms["narrative"] += settings.narrative_weight * found["narrative"]
        shares = fusion.cold_shares(terms)
        if "scorer" in found:
            worth = np.sum(list(terms.values()), axis=0).astype(np.float32)
            shares["scorer"] = self._evidence.cold - fusion.cold_log_probabilities(worth)
        return shares

    def _of_learning(self, share: float, ranking: Ranking) -> Iterator[str]:
        if not self._sources.settings.learning:
            yield "learning is switched off by its setting"
        elif self._evidence.learned is None:
            if ranking.trust > 0:
                yield "what was learned has not been proven yet, so it has no say"
        elif share == 0.0:
            yield "nothing that was learned is near enough to this question, so it has no say"
        elif share < 1.0:
            yield f"what was learned counts {share:.0%} for this question"

    def _of_choice(self, ranking: Ranking) -> Iterator[str]:
        if any(chance < 1.0 for chance in ranking.propensities):
            yield "exploration was on: chance may have put documents where their sums do not"
        elif self._sources.settings.diversity > 0:
            yield "diversity was on: documents unlike those before them may stand before better ones"

    def _of_change(self, ranking: Ranking) -> Iterator[str]:
        memory = self._sources.memory()
        if memory is None:
            return
        if "store" not in ranking.degraded and _epoch(memory, ranking.epoch) != ranking.epoch:
            yield "something was erased since; what is gone is not shown"
            return
        since = memory.last_known(ranking.namespace).feedback - self._evidence.feedback
        if since > 0:
            yield f"{since} more {'feedback has' if since == 1 else 'feedbacks have'} come in since this was ranked"


def _epoch(memory: Memory, known: int) -> int:
    """Return the store's epoch, or ``known`` when it cannot be asked."""
    try:
        return memory.epoch()
    except StoreError:
        return known


def _fallback(cold: Array) -> Array:
    """Return what the association features are where no remembered question votes, (n,)."""
    chances = np.exp(cold)
    fallback: Array = np.log(chances / chances.sum() + signals.VOTE_FLOOR)
    return fallback


def _through(shares: Mapping[str, Array], cold: Array, *, kept: float, fallback: float) -> dict[str, Array]:
    """Return the cold signals' shares in the final order, from those in the cold one.

    The cold order enters by itself, with weight ``kept``, and through the association's fallback; the two together
    are a rising function of it, so every signal's share is scaled by as much as their sum is.
    """
    lift = np.sum(list(shares.values()), axis=0)
    average = float(cold[0] - lift[0])  # the cold log-probability of a candidate average in every signal
    chances = np.exp(np.append(cold, average)) / np.exp(cold).sum()
    floored = np.log(chances + signals.VOTE_FLOOR)
    flat = np.abs(lift) < 1e-9
    # at 0 the quotient is a slope
    slope = np.where(
        flat, chances[:-1] / (chances[:-1] + signals.VOTE_FLOOR),
        (floored[:-1] - floored[-1]) / np.where(flat, 1.0, lift),
    )
    return {name: (kept + fallback * slope) * values for name, values in shares.items()}


class _Lookup:
    """Finds the events behind remembered questions, each once; notes what went wrong, and never raises."""

    def __init__(self, memory: Memory | None, namespace: str) -> None:
        self.replaced = False
        """Set where a question has made room for a newer one since."""
        self._memory = memory
        self._namespace = namespace
        self._found: dict[int, Event | None] = {}
        self._error: StoreError | None = None

    def event(self, position: int) -> Event | None:
        """Return the event, None when it was erased or cannot be asked for."""
        if self._memory is None or self._error is not None:
            return None
        if position not in self._found:
            try:
                self._found[position] = self._memory.event(position, self._namespace)
            except StoreError as error:
                self._error = error
                return None
        return self._found[position]

    def trouble(self) -> Iterator[str]:
        """Say why remembered questions may be missing."""
        if self._memory is None:
            yield "the reranker is gone, so remembered questions cannot be named"
        elif self._error is not None:
            yield f"the store cannot be asked, so remembered questions may be missing: {self._error}"
        if self.replaced:
            yield "some remembered questions have made room for newer ones since, and are not named"


class _Vote(NamedTuple):
    """One remembered question of one document: its share in the document's votes, its cosine, its place there."""

    share: float
    similarity: float
    place: int


class _Voters:
    """All remembered questions that had a say in one ranking, with the mass of each vote."""

    def __init__(self, learned: Learned, shares: Mapping[str, Array], look: _Lookup) -> None:
        self._learned = learned
        self._shares = shares
        self._look = look
        near, refused = learned.features.near, learned.features.refused
        scale = {"mean": learned.mean, "deviation": learned.deviation}
        if near is not None:
            weights = learned.trust.weights_at(learned.nearness)[VOTES]
            self._for = weights @ signals.votes(near.similarity, near.weight, **scale)
        if refused is not None:
            self._against = signals.refusals(refused.similarity, refused.weight, **scale)

    def of(self, position: int, name: str) -> Iterator[Remembered]:
        """Yield the questions that spoke for, then those that spoke against the candidate at ``position``."""
        learned, slot = self._learned, self._learned.slots[position]
        near, refused = learned.features.near, learned.features.refused
        if near is not None and abs(self._shares["association"][position]) >= LEAST_MOVE:
            votes = _votes(near, self._for, position)
            yield from self._named(votes, learned.helped.get(slot, ()), name, helped=True)
        if refused is not None and abs(self._shares["rejection"][position]) >= LEAST_MOVE:
            votes = _votes(refused, self._against, position)
            yield from self._named(votes, learned.failed.get(slot, ()), name, helped=False)

    def _named(
        self, votes: Sequence[_Vote], origins: Sequence[Origin], name: str, *, helped: bool
    ) -> Iterator[Remembered]:
        for vote in votes:
            # looked at once: another thread may be learning
            origin = origins[vote.place] if vote.place < len(origins) else None
            if origin is None or origin.learned > self._learned.position:
                self._look.replaced = True
                continue
            event = self._look.event(origin.event)
            if event is None:
                continue
            if isinstance(event, FeedbackGiven) and origin.learned > origin.event:
                about, reward = event.ranking, max((one for _, one in event.rewards), default=None)
            else:
                about, reward = _said(event, name)
                if name not in about.document_ids:
                    continue  # the document has been erased from it
            if reward is None:
                continue  # or what was rewarded, and this took its place
            yield Remembered(about.ranking_id, about.query_text, vote.similarity, reward, vote.share, helped)


def _said(event: Event, name: str) -> tuple[RankingServed, float | None]:
    """Return the ranking behind an event, and what the event gave the document; a ranking alone gave it nothing."""
    if isinstance(event, FeedbackGiven):
        return event.ranking, dict(event.rewards).get(name)
    return event, 0.0


def _votes(near: Near, mass: Array, position: int) -> list[_Vote]:
    """Return the weightiest votes on the candidate at ``position``."""
    group = np.flatnonzero(near.columns == position)
    if not len(group):
        return []
    start = int(near.starts[group[0]])
    members = slice(start, start + int(near.remembered[group[0]]))
    own, similarity = mass[members], near.similarity[members]
    total = float(own.sum())
    if total <= 0:
        return []
    votes = map(_Vote, (own / total).tolist(), similarity.tolist(), range(len(own)))
    return sorted((vote for vote in votes if vote.share >= LEAST_SHARE), reverse=True)[:MOST_QUESTIONS]
