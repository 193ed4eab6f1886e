"""What the cache hands back: hits, explanations, counts."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from neuralcache_plugins.contracts import AnswerTotals
from neuralcache_plugins.semantic_cache.certificate import Certificate
from neuralcache_plugins.semantic_cache.keys import Documents
from neuralcache_plugins.telemetry import RecorderStats


@dataclass(frozen=True, slots=True)
class CacheHit:
    """A cached answer. ``question`` is the cached one; ``score`` is the estimated probability that it is right here.

    ``hit_id`` is for ``report``, from any process, once the hit is written (within ``flush_interval_seconds``).
    """

    hit_id: str
    kind: Literal["exact", "semantic"]
    value: Any
    question: str
    score: float = 1.0


@dataclass(frozen=True, slots=True)
class Sourced:
    """What a computation may return when it is it that finds the documents: the answer, and what it came from."""

    value: Any
    documents: Documents


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a question is answered from the cache, or is not. ``str()`` of it is for people."""

    question: str
    hit: bool
    kind: Literal["exact", "semantic"] | None
    reasons: tuple[str, ...]
    nearest: str | None = None
    similarity: float | None = None
    score: float | None = None
    age_seconds: float | None = None
    features: Mapping[str, float] | None = None

    def __str__(self) -> str:
        verdict = f"answered from the cache ({self.kind})" if self.hit else "not answered from the cache"
        lines = [f"{self.question!r}: {verdict}", *(f"  {reason}" for reason in self.reasons)]
        if self.nearest is not None and self.similarity is not None:
            lines.append(f"  nearest cached question: {self.nearest!r}, cosine {self.similarity:.3f}")
        if self.score is not None:
            lines.append(f"  estimated probability that its answer is right: {self.score:.3f}")
        if self.age_seconds is not None:
            lines.append(f"  put {self.age_seconds:.0f} s ago")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What one cache object did so far, and what the log holds of its namespace. ``str()`` of it is for people.

    ``misses`` are by reason; ``shared`` waited for somebody else's computation. ``seconds_saved`` and ``cost_saved``
    add up what the answers served had taken when they were computed. ``audits_failed`` could not be computed or judged,
    ``left_undone`` found no room in the background. ``degraded`` counts what the cache had to do without ("store",
    "encoder"). ``logged`` counts all processes, up to what is written; None if the store fails, as ``certificate`` is.
    """

    store: str
    namespace: str
    exact_hits: int
    semantic_hits: int
    stale_hits: int
    misses: Mapping[str, int]
    stored: int
    refused: int
    computed: int
    shared: int
    failed: int
    judged: int
    audits_failed: int
    left_undone: int
    reported_wrong: int
    seconds_saved: float
    cost_saved: float
    degraded: Mapping[str, int]
    recorder: RecorderStats
    logged: AnswerTotals | None = None
    certificate: Certificate | str | None = None

    @property
    def hits(self) -> int:
        """All answers that were served from the cache."""
        return self.exact_hits + self.semantic_hits + self.stale_hits

    def facts(self) -> list[tuple[str, str]]:
        """Return what this object did, as pairs of name and words."""
        log = self.recorder
        return [
            ("store", f"{self.store}, namespace {self.namespace!r}"),
            ("hits", f"{self.hits:,} ({self.exact_hits:,} exact, {self.semantic_hits:,} similar, {self.stale_hits:,} "
                     f"stale) of {self.hits + sum(self.misses.values()):,}; saved {_saved(self)}"),
            ("misses", _listed(self.misses)),
            ("answers", f"{self.stored:,} put, {self.refused:,} refused, {self.computed:,} computed, {self.shared:,} "
                        f"shared, {self.failed:,} failed"),
            ("judged", f"{self.judged:,} ({self.reported_wrong:,} reported wrong), {self.audits_failed:,} audits "
                       f"failed, {self.left_undone:,} pieces of work left undone"),
            ("log", f"{log.written:,} events written, {log.pending:,} waiting, {log.dropped:,} dropped, "
                    f"{log.failures:,} failures" + (f" (last: {log.last_error})" if log.last_error else "")),
            ("without", _listed(self.degraded)),
        ]

    def logged_facts(self) -> list[tuple[str, str]]:
        """Return what the log holds of all processes, as pairs of name and words."""
        logged = self.logged
        if logged is None:
            return [("log", "cannot be read")]
        hits, misses = sum(logged.served.values()), sum(logged.missed.values())
        judged = {source: f"{count:,}, {logged.wrong.get(source, 0):,} of them wrong"
                  for source, count in logged.judged.items() if source != "calibrated"}
        facts = [
            ("hits", f"{hits:,} of {hits + misses:,} ({_listed(logged.served)}); saved {_saved(logged)}"),
            ("misses", _listed(logged.missed)), ("answers put", f"{logged.put:,}"),
            ("judged", "; ".join(f"{source} {words}" for source, words in judged.items()) or "none"),
            ("certificate", str(self.certificate)),
        ]
        if isinstance(self.certificate, Certificate) and self.certificate.moves:
            facts.append(("moves", "; ".join(f"{when} {what}" for when, what in self.certificate.history()[-5:])))
        return facts

    def __str__(self) -> str:
        own = [f"{name}: {words}" for name, words in self.facts()]
        return "\n".join([*own, "all processes:", *(f"  {name}: {words}" for name, words in self.logged_facts())])

    def _repr_html_(self) -> str:
        return html_facts(self.facts()) + "<h4>all processes</h4>" + html_facts(self.logged_facts())


class _Saving(Protocol):
    @property
    def cost_saved(self) -> float: ...
    @property
    def seconds_saved(self) -> float: ...


def html_facts(facts: Sequence[tuple[str, str]]) -> str:
    """Return names and words as an HTML table, with everything escaped."""
    rows = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(words)}</td></tr>" for name, words in facts)
    return f"<table><tbody>{rows}</tbody></table>"


def _saved(counted: _Saving) -> str:
    cost = f", cost {counted.cost_saved:,.6g}" if counted.cost_saved else ""
    return f"{counted.seconds_saved:,.1f} s{cost}"


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items(), key=lambda item: -item[1])) or "none"
