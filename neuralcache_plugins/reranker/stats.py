"""A reranker at a glance."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from neuralcache_plugins.contracts import SatisfactionFell
from neuralcache_plugins.core.trust import BURDEN, FEATURES
from neuralcache_plugins.memory import Decision, LearnedState, Learner, Point, Watch
from neuralcache_plugins.telemetry import RecorderStats

BARS = "▁▂▃▄▅▆▇█"
MOMENTS = 4
"""So many moments of the past are shown to people."""


@dataclass(frozen=True, slots=True)
class TrustStats:
    """How the guard stands with one encoder's learning, and how it came there.

    ``trust`` in [0, 1) counts above 0.5: when both ``over_cold`` and ``over_avoidance`` exceed ``needed``. They are
    the evidence (natural logarithms) that the learned order predicts feedback better than the cold order, and better
    than somebody who avoids the right document at random; ``tests`` feedbacks went into them. ``decision`` is the
    last time the guard changed its mind. ``weights`` are those of the learned order's features where memory knows
    almost the same question; ``history`` holds up to 64 earlier states, evenly spread over all feedback.
    """

    trust: float
    tests: int
    over_cold: float
    over_avoidance: float
    needed: float
    decision: Decision | None
    weights: Mapping[str, float]
    history: tuple[Point, ...] = field(repr=False)

    @classmethod
    def of(cls, learner: Learner) -> TrustStats:
        """Read the numbers off a learner."""
        over_cold, over_avoidance = learner.trust.strongest()
        return cls(
            trust=learner.trust.value,
            tests=learner.trust.tests,
            over_cold=over_cold,
            over_avoidance=over_avoidance,
            needed=BURDEN,
            decision=learner.course.decision,
            weights=learner.trust.named_weights(),
            history=tuple(learner.course.points),
        )

    @property
    def evidence(self) -> float:
        """The weaker of the two: what decides."""
        return min(self.over_cold, self.over_avoidance)

    def facts(self) -> list[tuple[str, str]]:
        """Return what can be said in words, as pairs of name and words."""
        facts = [("trust", f"{self.trust:.2f}, {self.verdict()}")]
        return [*facts, ("trust over all feedback", self.curve())] if self.history else facts

    def verdict(self) -> str:
        """Return in one sentence whether the learned order counts, since when, and on what evidence."""
        last = self.decision
        if last is None:
            tested = f"after {_times(self.tests, 'test')}" if self.tests else "no feedback could test it yet"
            return f"not proven yet, so the order is the cold one: evidence {self._of_needed()} needed ({tested})"
        proof = (
            f"evidence then: {last.over_cold:.1f} over the cold order, {last.over_avoidance:.1f} over blind avoidance, "
            f"{self.needed:.1f} needed of each"
        )
        when = f"{moment(last.at)}, after {_times(last.feedback, 'feedback')}"
        if last.counts:
            now = f"now {self.over_cold:.1f} and {self.over_avoidance:.1f}"
            return f"the learned order counts since {when} ({proof}; {now})"
        return f"withdrawn at {when}, so the order is the cold one: evidence {self._of_needed()} needed ({proof})"

    def curve(self) -> str:
        """Return trust over all feedback as a line of bars, one per point of ``history``."""
        return "".join(BARS[min(len(BARS) - 1, int(point.trust * len(BARS)))] for point in self.history)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return header and rows for people, of a past that is not empty and of now: one column per moment."""
        last = len(self.history) - 1
        past = [self.history[place] for place in sorted({last * part // MOMENTS for part in range(MOMENTS)})]
        header = ["after feedback", *(str(one.feedback) for one in past), "now"]
        days = ["on", *(moment(one.at)[:10] for one in past), ""]
        evidence = [*(min(one.over_cold, one.over_avoidance) for one in past), self.evidence]
        numbers = [(one.trust, *one.weights) for one in past] + [(self.trust, *self.weights.values())]
        names = ("trust", *(f"weight {name}" for name in FEATURES))
        rows = [[name, *(f"{value:.2f}" for value in values)] for name, *values in zip(names, *numbers, strict=True)]
        return header, [days, ["evidence", *(f"{one:.1f}" for one in evidence)], *rows]

    def _of_needed(self) -> str:
        return f"{self.evidence:.1f} of {self.needed:.1f}"


@dataclass(frozen=True, slots=True)
class SatisfactionStats:
    """How one stream of feedback stands: all of a namespace's, or of one kind of source.

    Rewards are discounted by rank, see ``memory.satisfaction``. ``recent`` is their mean over the last twenty or so,
    ``at_least`` what the mean was (95 % lower bound, all time since the last alarm), ``evidence`` in [0, 1] how far the
    test is on its way to an alarm (1).
    """

    feedback: int
    recent: float
    at_least: float
    evidence: float

    @classmethod
    def of(cls, watch: Watch) -> SatisfactionStats:
        """Read the numbers off a watch."""
        return cls(watch.count, watch.recent, watch.before, watch.evidence)

    def words(self) -> str:
        """Return it in words."""
        usual = f"was at least {self.at_least:+.2f}" if self.at_least > -1.0 else "too little feedback to tell a fall"
        return (f"mean reward {self.recent:+.2f} of late, {usual}; evidence of a fall {self.evidence:.0%} "
                f"({_times(self.feedback, 'feedback')})")


@dataclass(frozen=True, slots=True)
class SourceStats:
    """What one source of feedback counts: ``weight`` in all, and ``reliability`` of it by comparison.

    ``agreed`` and ``disagreed`` are comparisons with explicit feedback on the same rankings.
    """

    weight: float
    reliability: float
    agreed: float
    disagreed: float

    def words(self) -> str:
        """Return it in words."""
        return (f"counts {self.weight:.2f} (reliability {self.reliability:.2f}: explicit feedback agreed "
                f"{self.agreed:.0f} times, disagreed {self.disagreed:.0f})")


@dataclass(frozen=True, slots=True)
class NamespaceStats:
    """What one namespace has learned; times in seconds since the epoch, UTC. ``str()`` says it in words.

    ``gain`` is the mean gain in reciprocal rank of the served over the retriever's order, among the documents shown,
    with its 95 % interval (None below 20 feedbacks). ``guard``, ``trust`` and ``weights`` are by encoder, since
    nothing learned with one encoder's vectors holds for another's; the last two are shorthands for what is in
    ``guard``. With ``learning`` False the order stays cold, whatever the evidence. ``satisfaction`` is by kind of
    source, "" for all; ``falls`` counts the alarms, ``last_fall`` is the last one. ``sources`` are those that explicit
    feedback could be compared with.
    """

    namespace: str
    rankings: int
    feedback: int
    first_feedback_at: float | None
    last_feedback_at: float | None
    documents: int
    remembered_questions: int
    sessions: int
    gain: float
    gain_interval: tuple[float, float] | None
    trust: Mapping[str, float]
    weights: Mapping[str, Mapping[str, float]]
    guard: Mapping[str, TrustStats]
    learning: bool = True
    satisfaction: Mapping[str, SatisfactionStats] = field(default_factory=dict)
    falls: int = 0
    last_fall: SatisfactionFell | None = None
    sources: Mapping[str, SourceStats] = field(default_factory=dict)

    @classmethod
    def of(cls, namespace: str, state: LearnedState) -> NamespaceStats:
        """Read the numbers off a state."""
        learners = state.learners.values()
        guard = {encoder: TrustStats.of(one) for encoder, one in state.learners.items()}
        return cls(
            namespace=namespace,
            rankings=state.rankings,
            feedback=state.feedback,
            first_feedback_at=state.first_feedback_at,
            last_feedback_at=state.last_feedback_at,
            documents=len(state.documents),
            remembered_questions=sum(one.helped.total + one.failed.total for one in learners),
            sessions=sum(len(one.sessions) for one in learners),
            gain=state.gain.mean,
            gain_interval=state.gain.interval(),
            trust={encoder: one.trust for encoder, one in guard.items()},
            weights={encoder: one.weights for encoder, one in guard.items()},
            guard=guard,
            learning=state.settings.learning,
            satisfaction={name: SatisfactionStats.of(one) for name, one in state.satisfaction.watches.items()},
            falls=state.satisfaction.falls,
            last_fall=state.satisfaction.last,
            sources={
                name: SourceStats(state.sources.weight(name), state.sources.reliability(name), *counts)
                for name, counts in state.sources.compared.items()
            },
        )

    def facts(self) -> list[tuple[str, str]]:
        """Return what can be said without an encoder, as pairs of name and words."""
        facts = [
            ("rankings", str(self.rankings)),
            ("feedback", f"{self.feedback}, {self._period()}"),
            ("known", f"{self.documents} documents, {self.remembered_questions} questions, {self.sessions} sessions"),
            ("gain over the retriever", self._gain()),
        ]
        facts += self._satisfied()
        facts += [(f"source {name}", one.words()) for name, one in sorted(self.sources.items())]
        return facts if self.learning else [*facts, ("learning", "switched off by its setting")]

    def _satisfied(self) -> list[tuple[str, str]]:
        """Return how satisfied people are: all sources together, and each kind where there are several."""
        kinds = sorted(name for name in self.satisfaction if name)
        shown = [name for name in ("", *kinds) if name in self.satisfaction and (not name or len(kinds) > 1)]
        facts = [(f"satisfaction, {name}" if name else "satisfaction", self.satisfaction[name].words())
                 for name in shown]
        if self.last_fall is None:
            return facts
        last = self.last_fall
        of = "" if last.source is None else f" by source {last.source}"
        return [*facts, ("satisfaction fell", f"{_times(self.falls, 'time')}, last at {moment(last.at)}{of}: from at "
                                              f"least {last.before:+.2f} to {last.after:+.2f}")]

    def __str__(self) -> str:
        lines = [f"namespace {self.namespace!r}", *(f"  {name}: {words}" for name, words in self.facts())]
        for encoder, one in self.guard.items():
            lines += [f"  encoder {encoder}", *(f"    {name}: {words}" for name, words in one.facts())]
            lines.append("    weights: " + ", ".join(f"{name} {value:.2f}" for name, value in one.weights.items()))
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        parts = [f"<h4>namespace {html.escape(repr(self.namespace))}</h4>", _html_facts(self.facts())]
        for encoder, one in self.guard.items():
            parts += [f"<h5>encoder {html.escape(encoder)}</h5>", _html_facts(one.facts())]
            if one.history:
                parts.append(_html_table("how trust and the weights came about", *one.table()))
        return "".join(parts)

    def _period(self) -> str:
        if self.first_feedback_at is None or self.last_feedback_at is None:
            return "none yet"
        return f"from {moment(self.first_feedback_at)} to {moment(self.last_feedback_at)}"

    def _gain(self) -> str:
        if self.gain_interval is None:
            return "too little feedback to tell"
        low, high = self.gain_interval
        return f"{self.gain:+.3f} reciprocal rank of what helped, among the shown (95 %: {low:+.3f} to {high:+.3f})"


@dataclass(frozen=True, slots=True)
class RerankerStats:
    """Counts and health of a reranker. ``degraded`` counts rankings by what they had to do without."""

    store: str
    namespace: NamespaceStats
    recorder: RecorderStats
    encoder_calls: int
    vectors_found: int
    degraded: Mapping[str, int]
    unusable_vectors: int

    def __str__(self) -> str:
        return "\n".join([*(f"{name}: {words}" for name, words in self._facts()), str(self.namespace)])

    def _repr_html_(self) -> str:
        return _html_facts(self._facts()) + self.namespace._repr_html_()

    def _facts(self) -> list[tuple[str, str]]:
        log, failed = self.recorder, self.recorder.last_error
        degraded = ", ".join(f"{count} without {what}" for what, count in self.degraded.items())
        return [
            ("store", self.store),
            ("log", f"{log.written} events written, {log.pending} waiting, {log.dropped} dropped, "
                    f"{log.failures} failures" + (f" (last: {failed})" if failed else "")),
            ("encoder", f"{self.encoder_calls} calls, {self.vectors_found} vectors found in the cache, "
                        f"{self.unusable_vectors} unusable"),
            ("degraded rankings", degraded or "none"),
        ]


def moment(at: float) -> str:
    """Return a time in seconds since the epoch for people, to the minute."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"


def _times(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _html_facts(facts: list[tuple[str, str]]) -> str:
    rows = "".join(
        f'<tr><th style="text-align: left">{html.escape(name)}</th>'
        f'<td style="text-align: left">{html.escape(words)}</td></tr>' for name, words in facts
    )
    return f"<table><tbody>{rows}</tbody></table>"


def _html_table(caption: str, header: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
