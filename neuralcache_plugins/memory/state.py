"""One namespace's learned state. It changes in ``fold`` alone; everything else only reads."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from neuralcache_plugins.contracts import Array, FeedbackGiven, RankingServed, Recorded, SatisfactionFell, Vector
from neuralcache_plugins.core import signals
from neuralcache_plugins.core.trust import COLD, FEATURES, LINEAR, UNCOMMON, Nearness, Trust, plausibility, softmax
from neuralcache_plugins.memory.changes import Changes
from neuralcache_plugins.memory.course import Course
from neuralcache_plugins.memory.documents import Documents
from neuralcache_plugins.memory.fruitless import Fruitless
from neuralcache_plugins.memory.gain import Gain
from neuralcache_plugins.memory.questions import Near, Origin, Questions, Slopes
from neuralcache_plugins.memory.satisfaction import Satisfaction
from neuralcache_plugins.memory.sources import Sources
from neuralcache_plugins.memory.successors import Successors
from neuralcache_plugins.settings import RerankSettings

PATIENCE = 64
"""A ranking counts as unanswered when this many later ones have been served without feedback for it: answered or not,
for if only the unanswered ones counted, silence would be heard the later the more people answer (on banking77 after 700
questions instead of 64; drift 0.01 less)."""

GRADED = 32
"""Feedback is compared with at most this many of the documents shown (and all that it names)."""

EXPOSED = 10
"""Only so many top ranks count as exposure."""

REFUSAL_SHARE = 4
"""A document keeps this many times fewer questions that it did not help: they tell less and cost as much."""

LEAST_SILENCE = 0.05
"""Silence that weighs less than this says nothing."""

SUPPOSED = 0.5
SUPPOSED_FROM = 0.4
SUPPOSED_SHARE = 0.75
"""Where silence says nothing, the question is remembered for the document that came first if memory itself finds that
at least ``SUPPOSED_FROM`` likely, with ``SUPPOSED`` times that chance, the less the more feedback there is. Only up to
a share of a document's capacity: the rest is for what was really told, and beyond it the weakest makes room, for what
is supposed later is supposed better. Self-training (Scudder, IEEE Trans. IT 11, 1965) under the guard: it starts when
trust is earned, and every feedback tests what came of it. 0.4 to 0.8, from 0.3 to 0.5 on, do as well within 0.003."""

BLAME = 0.5
PRAISE = 0.1
JUDGED_WIDTH = 0.5
"""A vote that speaks against what was just rewarded loses ``BLAME`` times the chance that its document was given; one
that speaks for it is made good by ``PRAISE``. Both fade with the distance beyond the nearest vote, in deviations, by
the middle kernel. Against a fixed nearness (4 deviations, 0.25 both ways), one seed, local / MiniLM: drift +0.020 /
+0.004, sparse +0.004 / -0.002, hostile -0.008 / +0.008, all -0.002 / +0.002; about 0.008 of that is luck."""

SILENT_NEAR = 2.5
SILENT_RATE = 0.5
"""Where most rankings are answered, silence says that nothing shown helped: near votes for it were wrong. Without
this, a document that changed its meaning keeps the new right one out of sight (drift, MiniLM: 0.69 to 0.73)."""

SLOPE_RATE = 3.0
"""Step of the linear models: constant, so that they follow a world that changes. 2 instead gives (24 seeds, local /
MiniLM) sparse -0.002 / -0.002, hostile +0.002 / +0.004, drift -0.001 / +0.005."""

REHEARSAL_NOISE = 0.1
REHEARSAL_RATE = 2.0
REHEARSAL_STRIDE = 40503
"""Where this share of the feedback is noise, feedback goes with one step of the linear models on a remembered question
of each document shown: old ones hold against a new one that may be wrong. Their weights are what later feedback left of
them, so refuted ones teach little. Elsewhere it would only slow a change down (drift: -0.02)."""

CHANGED_KEPT = 0.1
"""What a document that changed keeps of its votes, refusals and linear model: it starts almost afresh. Under drift 0.3
loses 0.01 to 0.03, 0 less than 0.01 (one seed)."""

HANDED_OVER = 0.7
HANDED_RATE = 1.0
"""Weight of a question that a changed document handed over to its successor, and the step with which the linear models
of the two learn each of them. 1 and 0.5 to 2 do as well."""

ANSWER_RATE = 0.01
REPEAT = 0.95
"""Two questions with at least this cosine are the same question."""
NAMESPACE_PACE = 0.1


class Waiting(NamedTuple):
    """A ranking that may still get feedback."""

    encoder: str
    question: Vector | None
    document_ids: tuple[str, ...]
    cold: tuple[float, ...]
    uncommon: tuple[float, ...]
    """As recorded with the ranking; empty where it was not."""
    position: int
    served: int
    """How many rankings had been served by then."""


class Features(NamedTuple):
    """The features (n, f) named in ``core.trust.FEATURES``, and the remembered questions that they were made of."""

    table: Array
    near: Near | None
    refused: Near | None


class Spread:
    """Running mean and deviation of the cosine of two questions, so that "near" means the same for every encoder.

    Starts from a prior worth ``PRIOR`` questions. Near repeats are left out and values far above are cut, so that a
    young namespace with one busy question does not take "the same question" for ordinary.

    ``centre`` is the mean question. What all questions share tells no two documents apart.
    """

    PRIOR = 30.0
    SETTLED = 1000.0
    MEMORY = 500.0
    RECENT = 32

    def __init__(self, width: int) -> None:
        self.mean = 0.18
        self.variance = 0.15**2
        self.count = self.PRIOR
        self.seen = 0
        self.recent = np.zeros((self.RECENT, width), dtype=np.float32)
        self.centre: Vector = np.zeros(width, dtype=np.float32)

    @property
    def deviation(self) -> float:
        """Return the standard deviation, never less than a cosine step that vectors can resolve."""
        return max(0.02, math.sqrt(self.variance))

    def observe(self, question: Vector) -> None:
        """Compare one more question with the most recent ones."""
        filled = min(self.seen, self.RECENT)
        highest = self.mean + 2.0 * self.deviation
        # plain Python: for 32 numbers it is faster than numpy, and a comparison faster than min()
        mean = self.mean
        off = [
            (one if one < highest else highest) - mean
            for one in self.recent[:filled].dot(question).tolist() if one < REPEAT
        ]
        if off:
            step = 1.0 / (self.count + 1.0)
            self.mean += step * (sum(off) / len(off))
            self.variance += step * (sum([one * one for one in off]) / len(off) - self.variance)
            self.count = min(self.MEMORY, self.count + 1.0)
        self.recent[self.seen % self.RECENT] = question
        self.seen += 1
        step_to = question - self.centre
        step_to /= min(self.seen + 10.0, self.SETTLED)
        self.centre += step_to


class Learner:
    """What was learned with the vectors of one encoder; another encoder's vectors are never mixed in."""

    def __init__(self, width: int, settings: RerankSettings) -> None:
        self.width = width
        self.helped = Questions(width=width, capacity=settings.questions_per_document)
        self.failed = Questions(width=width, capacity=max(1, settings.questions_per_document // REFUSAL_SHARE))
        self.spread = Spread(width)
        self.trust = Trust()
        self.course = Course()
        self.slopes = Slopes(width)
        self.changes = Changes()
        self.successors = Successors()
        self.fruitless = Fruitless()
        self.narrative: Vector | None = None
        self.sessions: OrderedDict[str, Vector] = OrderedDict()

    def nearness(self, near: Near | None) -> Nearness:
        """Return how near memory comes; its reach is 1 from ``signals.NEAR`` on, falling to 0 within half."""
        if near is None:
            return Nearness(0.0, 0.0)
        nearest = np.maximum.reduceat(near.similarity, near.starts)  # of each document
        nearest.sort()
        mean = self.spread.mean
        above = float(nearest[-1]) - mean
        lead = float(nearest[-1] - nearest[-2]) if len(nearest) > 1 else above
        reach = 1.0 + 2.0 * (above / self.spread.deviation - signals.NEAR)
        return Nearness(above / (1.0 - mean), min(1.0, max(0.0, reach)), lead / (1.0 - mean))


class LearnedState:
    """Memories of one namespace: credit by document, and one ``Learner`` per encoder."""

    def __init__(self, settings: RerankSettings) -> None:
        self.settings = settings
        self.position = 0
        self.rankings = 0
        self.feedback = 0
        self.first_feedback_at: float | None = None
        self.last_feedback_at: float | None = None
        self.answer_rate = 0.0
        self.gain = Gain()
        self.sources = Sources(settings.source_weights)
        self.satisfaction = Satisfaction()
        self.documents = Documents(capacity=settings.max_documents, half_life_seconds=settings.half_life_seconds)
        self.waiting: OrderedDict[str, Waiting] = OrderedDict()
        self.learners: dict[str, Learner] = {}

    # reading

    def narrative(self, encoder: str, session: str | None) -> Vector | None:
        """Return the session's narrative, or the namespace's when no session is named."""
        learner = self.learners.get(encoder)
        if learner is None:
            return None
        return learner.narrative if session is None else learner.sessions.get(session)

    def features(
        self, learner: Learner, question: Vector, slots: Sequence[int], *,
        cold: Array, pheromone: Vector, narrative: Array, uncommon: Array | Vector,
    ) -> Features:
        """Return what memory says about the candidates in ``slots`` (n,).

        ``cold`` (n,) are log-probabilities of the cold order among the same candidates, ``uncommon`` (n,) what
        ``fusion.uncommon`` says of them.
        """
        table = np.empty((len(slots), len(FEATURES)))
        table[:, 0] = cold
        table[:, 4] = 0.0
        table[:, 5] = pheromone
        table[:, 6] = narrative
        table[:, UNCOMMON] = uncommon
        table[:, LINEAR] = learner.slopes.scores(slots, question - learner.spread.centre)
        probability = np.exp(cold)
        probability /= np.add.reduce(probability)
        mean, deviation = learner.spread.mean, learner.spread.deviation
        near = learner.helped.near(slots, question)
        if near is None:
            table[:, 1:4] = np.log(probability + signals.VOTE_FLOOR)[:, None]
        else:
            share = self.documents.shares(np.array(slots).take(near.columns))
            unknown = self._unknown(slots, near)
            table[:, 1:4] = signals.association(
                *near[:5], share=share, cold=probability, unknown=unknown, mean=mean, deviation=deviation
            ).T
            if unknown is not None:
                neutral = signals.unmoved(table[near.columns, LINEAR], probability[near.columns])
                table[:, LINEAR] += unknown * neutral
        refused = learner.failed.near(slots, question)
        if refused is not None:
            table[refused.columns, 4] = signals.rejection(
                refused.similarity, refused.weight, refused.starts, refused.remembered, mean=mean, deviation=deviation
            )
        return Features(table, near, refused)

    def _unknown(self, slots: Sequence[int], near: Near) -> Array | None:
        """Return how little is known of each slot, 0 for those in ``near``; None where all of them are."""
        if len(near.columns) == len(slots):
            return None
        unknown = self.documents.unknown(slots)
        unknown[near.columns] = 0.0
        return unknown

    # writing: fold and what it calls

    def fold(self, recorded: Recorded) -> tuple[SatisfactionFell, ...]:
        """Take in the next event of the log and return the alarms that it sets off.

        Deterministic; an event at or before ``position`` changes nothing.
        """
        if recorded.position <= self.position:
            return ()
        self.position = recorded.position
        if isinstance(recorded.event, RankingServed):
            self._served(recorded.event)
            return ()
        return self._told(recorded.event)

    def _served(self, event: RankingServed) -> None:
        self.rankings += 1
        learner = self._learner(event)
        if learner is not None and event.query_vector is not None:
            learner.spread.observe(event.query_vector)
        shown = event.document_ids[:EXPOSED]
        for rank, document_id in enumerate(shown):
            self._pay(document_id, at=event.at, exposure=1.0 / (1.0 + rank))
        self.waiting[event.ranking_id] = Waiting(
            event.encoder, event.query_vector, shown, event.cold[:EXPOSED],
            event.signals.get("uncommon", ())[:EXPOSED], self.position, self.rankings,
        )
        while self.rankings - next(iter(self.waiting.values())).served >= PATIENCE:
            _, unanswered = self.waiting.popitem(last=False)
            self._unanswered(unanswered)

    def _told(self, event: FeedbackGiven) -> tuple[SatisfactionFell, ...]:
        self.feedback += 1
        self.first_feedback_at = event.at if self.first_feedback_at is None else self.first_feedback_at
        self.last_feedback_at = event.at
        weight = self.sources.weigh(event)
        if weight > 0.0:
            self._count_and_learn(event, weight)
        return self.satisfaction.observe(event, number=self.feedback)

    def _count_and_learn(self, event: FeedbackGiven, weight: float) -> None:
        """Learn from feedback that counts ``weight`` in (0, 1]: so much is a reward worth, and so much its test."""
        if self.waiting.pop(event.ranking_id, None) is not None:
            self.answer_rate += max(ANSWER_RATE, 1.0 / self.rankings) * (1.0 - self.answer_rate)
        rewards = {document_id: weight * reward for document_id, reward in event.rewards}
        self.gain.observe(event.ranking, rewards)
        for document_id, reward in rewards.items():
            self._pay(document_id, at=event.at, credit=reward)
        learner = self._learner(event.ranking)
        if learner is not None and event.ranking.query_vector is not None:
            self._learn(learner, event.ranking.query_vector, event, rewards, weight)
            self._follow(learner, event, weight)

    def _learn(
        self, learner: Learner, question: Vector, event: FeedbackGiven, rewards: dict[str, float], weight: float
    ) -> None:
        ranking = event.ranking
        graded = [rank for rank, name in enumerate(ranking.document_ids) if rank < GRADED or name in rewards]
        names = [ranking.document_ids[rank] for rank in graded]
        slots = self.documents.slots_of(names)
        recorded_narrative = ranking.signals.get("narrative")
        narrative = np.zeros(len(graded))
        if recorded_narrative is not None and ranking.session is None:
            narrative = np.array([recorded_narrative[rank] for rank in graded])
        recorded_uncommon = ranking.signals.get("uncommon")
        uncommon = np.zeros(len(graded))
        if recorded_uncommon is not None:
            uncommon = np.array([recorded_uncommon[rank] for rank in graded])
        features, near, _ = self.features(
            learner,
            question,
            slots,
            cold=np.array([ranking.cold[rank] for rank in graded]),
            pheromone=self.documents.pheromones(slots, event.at),
            narrative=narrative,
            uncommon=uncommon,
        )
        told = [rewards.get(name, 0.0) for name in names]
        for slot, value in zip(slots, told, strict=True):
            if value <= 0.0:
                self.documents.pass_over(slot, weight)
        praised = [name for name, value in zip(names, told, strict=True) if value > 0.0]
        plausible = 1.0
        if praised:
            learner.fruitless.told(ranking.document_ids[0], praised, weight=weight)
            helped = np.maximum(told, 0.0)
            target = helped / np.add.reduce(helped)
            noise = learner.changes.noise
            nearness = learner.nearness(near)
            known = 0.0 if near is None else float(np.add.reduce(target.take(near.columns)))
            predicted = learner.trust.test_and_learn(
                features, helped, nearness=nearness, weight=weight, novel=1.0 - known
            )
            chances = np.exp(predicted)
            # where memory knows nothing near it cannot tell what is plausible
            plausible -= nearness.reach * (1.0 - plausibility(chances, helped > 0.0, noise=noise))
            learner.course.observe(learner.trust, feedback=self.feedback, at=event.at)
            if near is not None:
                self._judge(learner, near, helped, chances, weight)
                first = int(predicted.argmax())
                right = {name: share for name, share in zip(names, target.tolist(), strict=True) if share > 0}
                learner.successors.observe(names[first], right)
                self._check(learner, names[first], missed=names[first] not in right, weight=weight)
            if len(praised) < len(names):
                chances = softmax(features[:, COLD] + features[:, LINEAR])
                rate = weight * plausible * SLOPE_RATE
                self._move(learner, slots, question, rate * (target - chances))
        origin = Origin(self.position, self.position)
        for slot, value in zip(slots, told, strict=True):
            if value > 0:
                learner.helped.add(slot, question, plausible * value, origin=origin)
            elif value < 0:
                learner.failed.add(slot, question, -value, origin=origin)
        if praised and noise > REHEARSAL_NOISE:
            self._rehearse(learner, slots)
        self._make_room(learner)

    def _rehearse(self, learner: Learner, slots: list[int]) -> None:
        """Let the linear models of the documents shown tell one remembered question of each apart once more."""
        number = self.feedback * REHEARSAL_STRIDE
        found = {slot: one for slot in slots if (one := learner.helped.of(slot, number)) is not None}
        questions = np.array([question for question, _ in found.values()]) - learner.spread.centre
        rates = np.array([REHEARSAL_RATE * weight for _, weight in found.values()], dtype=np.float32)
        learner.slopes.rehearse(list(found), questions, rates)

    def _judge(
        self, learner: Learner, near: Near, helped: Array, chances: Array, weight: float
    ) -> None:
        """Move the weights of near votes: up where this feedback agrees with them, else down by what they claimed.

        ``helped`` and ``chances`` (k,) are the rewards of the documents shown and the chances that they were given.
        """
        step = near.similarity - learner.spread.mean
        step /= learner.spread.deviation
        far = step < signals.FAR
        step -= max(signals.NEAR, float(step.max()))
        step /= JUDGED_WIDTH
        np.exp(step, out=step)
        step[far] = 0.0
        rates = BLAME * weight * chances
        rates[helped > 0.0] = PRAISE * weight
        step *= rates.take(near.columns).repeat(near.remembered)
        moved = near.weight - near.weight * step
        for start, column, size in zip(*[one.tolist() for one in near[2:5]], strict=True):
            if helped[column] > 0.0:  # these are drawn to 1, the others to 0
                moved[start : start + size] += step[start : start + size]
        learner.helped.reweigh(near, moved)

    def _check(self, learner: Learner, name: str, *, missed: bool, weight: float) -> None:
        """See whether the document that memory put first has changed; what was learned of it is then of the past."""
        slot = self.documents.slots.get(name, -1)
        if slot < 0 or self.documents.rewards[slot] == 0:
            return
        if learner.changes.observe(slot, missed=missed, at=self.position, weight=weight):
            learner.helped.fade(slot, CHANGED_KEPT, before=learner.changes.changed(slot))
            learner.failed.fade(slot, CHANGED_KEPT)
            learner.slopes.fade(slot, CHANGED_KEPT)
        if missed:
            self._hand_over(learner, name, slot)

    def _hand_over(self, learner: Learner, name: str, slot: int) -> None:
        """Let a changed document's old questions speak for the one that took its place, as soon as that is known."""
        changed = learner.changes.changed(slot)
        successor = None if changed is None else learner.successors.of(name)
        heir = -1 if successor is None else self.documents.slots.get(successor, -1)
        if changed is None or heir < 0:
            return
        learner.changes.settle(slot)
        learner.successors.drop(name)
        questions, origins = learner.helped.take(slot, before=changed)
        for question, origin in zip(questions, origins, strict=True):
            learner.helped.add(heir, question, HANDED_OVER, origin=origin._replace(learned=self.position))
        centre = learner.spread.centre
        learner.slopes.tell_apart(heir, slot, questions - centre, HANDED_RATE)
        learner.slopes.tell_apart(slot, heir, learner.helped.rows(slot) - centre, HANDED_RATE)

    def _follow(self, learner: Learner, event: FeedbackGiven, weight: float) -> None:
        vector = event.document_vector
        if vector is None or len(vector) != learner.width or sum(reward for _, reward in event.rewards) <= 0:
            return
        vector = vector.astype(np.float32)
        rate = weight * self.settings.narrative_rate
        session = event.ranking.session
        if session is None:
            learner.narrative = signals.moved_towards(learner.narrative, vector, rate=rate * NAMESPACE_PACE)
            return
        learner.sessions[session] = signals.moved_towards(learner.sessions.pop(session, None), vector, rate=rate)
        if len(learner.sessions) > self.settings.max_sessions:
            learner.sessions.popitem(last=False)

    def _unanswered(self, waiting: Waiting) -> None:
        """Count silence against what was shown, the less the rarer feedback is here."""
        self.answer_rate -= max(ANSWER_RATE, 1.0 / self.rankings) * self.answer_rate
        learner = self.learners.get(waiting.encoder)
        weight = self.answer_rate**2
        if learner is None or waiting.question is None:
            return
        if weight < LEAST_SILENCE:
            self._suppose(learner, waiting.question, waiting)
            return
        slots = [slot for slot in self.documents.slots_of(waiting.document_ids) if slot >= 0]
        if not slots:
            return
        self._blame(learner, waiting.question, slots, weight)
        learner.fruitless.silent(waiting.document_ids, weight=weight)
        self._check(learner, waiting.document_ids[0], missed=True, weight=weight)
        origin = Origin(waiting.position, self.position)
        for slot in slots:
            learner.failed.add(slot, waiting.question, weight, origin=origin)
        self._make_room(learner)

    def _suppose(self, learner: Learner, question: Vector, waiting: Waiting) -> None:
        """Remember what memory itself would say to a question that nobody answered, where hardly anybody does."""
        slots = self.documents.slots_of(waiting.document_ids)
        first = (slots or [-1])[0]
        if first < 0 or not learner.trust.earned:
            return
        silent = np.zeros(len(slots))
        features, near, _ = self.features(
            learner, question, slots, cold=np.array(waiting.cold), pheromone=silent.astype(np.float32),
            narrative=silent, uncommon=np.array(waiting.uncommon) if waiting.uncommon else silent,
        )
        nearness = learner.nearness(near)
        chances = softmax(features @ learner.trust.weights_at(nearness))
        if nearness.reach == 1.0 and chances.argmax() == 0 and chances[0] >= SUPPOSED_FROM:
            supposed = SUPPOSED * (1.0 - self.answer_rate) ** 2 * float(chances[0])
            learner.helped.suppose(
                first, question, supposed, origin=Origin(waiting.position, self.position), share=SUPPOSED_SHARE
            )
            self._make_room(learner)

    def _blame(self, learner: Learner, question: Vector, slots: list[int], weight: float) -> None:
        """Take back, by ``weight``, what memory claimed for documents that nobody found helpful."""
        near = learner.helped.near(slots, question)
        if near is not None:
            standard = (near.similarity - learner.spread.mean) / learner.spread.deviation
            closeness = np.minimum(np.maximum((standard - SILENT_NEAR) / 2.0, 0.0), 1.0)
            learner.helped.reweigh(near, near.weight * (1.0 - weight * SILENT_RATE * closeness))
        chances = softmax(learner.slopes.scores(slots, question - learner.spread.centre))
        self._move(learner, slots, question, -SLOPE_RATE * weight * chances)

    def _move(self, learner: Learner, slots: list[int], question: Vector, amounts: Array) -> None:
        """Move linear models. A document has one from when it first helped: praise of another moves no bystander."""
        rewards = self.documents.rewards
        moved = [(slot, amount) for slot, amount in zip(slots, amounts.tolist(), strict=True)
                 if slot >= 0 and rewards[slot] > 0]
        if moved:
            begun, steps = zip(*moved, strict=True)
            learner.slopes.move(begun, question - learner.spread.centre, steps)

    def _pay(self, document_id: str, *, at: float, credit: float = 0.0, exposure: float = 0.0) -> None:
        evicted = self.documents.pay(document_id, at=at, credit=credit, exposure=exposure)
        if evicted is not None:
            self._drop(evicted)

    def _make_room(self, learner: Learner) -> None:
        while learner.helped.total + learner.failed.total > self.settings.max_questions and len(self.documents) > 1:
            self._drop(self.documents.evict())

    def _drop(self, slot: int) -> None:
        for learner in self.learners.values():
            learner.helped.drop(slot)
            learner.failed.drop(slot)
            learner.slopes.drop(slot)
            learner.changes.drop(slot)

    def _learner(self, ranking: RankingServed) -> Learner | None:
        if ranking.query_vector is None:
            return None
        learner = self.learners.get(ranking.encoder)
        if learner is None:
            learner = self.learners[ranking.encoder] = Learner(len(ranking.query_vector), self.settings)
        return learner if learner.width == len(ranking.query_vector) else None
