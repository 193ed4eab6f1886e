"""What others score becomes feedback: LangSmith, Langfuse, Phoenix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple, Protocol

from neuralcache_plugins.errors import InvalidInputError, UnknownRankingError

_LABELS = {"true": 1.0, "yes": 1.0, "thumbs-up": 1.0, "thumbs_up": 1.0, "positive": 1.0, "correct": 1.0,
           "good": 1.0, "relevant": 1.0, "helpful": 1.0,
           "false": -1.0, "no": -1.0, "thumbs-down": -1.0, "thumbs_down": -1.0, "negative": -1.0, "incorrect": -1.0,
           "bad": -1.0, "irrelevant": -1.0, "unhelpful": -1.0, "neutral": 0.0}


class Judge(Protocol):
    """What takes a judgement about an answer, such as ``Reranker.judge``."""

    def __call__(self, trace: Sequence[str], value: float, *, source: str, feedback_id: str | None) -> object:
        """Judge what is known by the first of these ids that any ranking has; ``UnknownRankingError`` if none."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of records: ``given`` on as feedback, ``unscored`` (a comment, a label unknown here), ``unknown``.

    ``unknown`` are those of traces without a ranking of ours.
    """

    given: int = 0
    unscored: int = 0
    unknown: int = 0


class _Score(NamedTuple):
    trace: list[str]
    value: float
    source: str
    feedback_id: str | None


def from_langsmith(records: Any, judge: Judge, *, scale: tuple[float, float] = (0.0, 1.0)) -> Taken:
    """Hand on feedback of LangSmith, as ``Client.list_feedback`` yields it.

    Read are ``run_id``, ``trace_id``, ``key``, ``score`` (or a label in ``value``) and ``id``, of one record or many,
    objects or dicts. ``scale`` are the worst and the best score. The source is ``langsmith:<key>``, and a record counts
    once, however often it is handed in. ``InvalidInputError`` for a record without an id of a run and for a score
    beyond the scale.
    """
    return _hand_on([_read(record, "langsmith", ids=("run_id", "trace_id"), name="key", scores=("score",),
                           labels=("value",), scale=scale) for record in _records(records)], judge)


def from_langfuse(records: Any, judge: Judge, *, scale: tuple[float, float] = (0.0, 1.0)) -> Taken:
    """Hand on scores of Langfuse: ``observationId``, ``traceId``, ``name``, ``value``, ``stringValue``, ``id``.

    In camel or snake case; as ``from_langsmith``; the source is ``langfuse:<name>``.
    """
    ids = ("observationId", "observation_id", "traceId", "trace_id")
    return _hand_on([_read(record, "langfuse", ids=ids, name="name", scores=("value",),
                           labels=("stringValue", "string_value", "value"), scale=scale)
                     for record in _records(records)], judge)


def from_phoenix(records: Any, judge: Judge, *, scale: tuple[float, float] = (0.0, 1.0)) -> Taken:
    """Hand on annotations of Phoenix (``span_id`` or ``trace_id``, ``name``, ``result`` with ``score`` and ``label``).

    As ``from_langsmith``; the source is ``phoenix:<name>``. Rows of a data frame go in as
    ``frame.reset_index().to_dict("records")``.
    """
    ids = ("span_id", "context.span_id", "trace_id", "context.trace_id")
    return _hand_on([_read(record, "phoenix", ids=ids, name="name", scores=("score", "result.score"),
                           labels=("label", "result.label"), scale=scale) for record in _records(records)], judge)


def _records(records: Any) -> Iterable[Any]:
    if isinstance(records, Mapping) or not isinstance(records, Iterable):
        return [records]
    return records


def _hand_on(scores: Iterable[_Score | None], judge: Judge) -> Taken:
    given = unscored = unknown = 0
    for one in scores:
        if one is None:
            unscored += 1
            continue
        try:
            judge(one.trace, one.value, source=one.source, feedback_id=one.feedback_id)
        except UnknownRankingError:
            unknown += 1
        else:
            given += 1
    return Taken(given, unscored, unknown)


def _read(record: Any, kind: str, *, ids: Sequence[str], name: str, scores: Sequence[str], labels: Sequence[str],
          scale: tuple[float, float]) -> _Score | None:
    trace = [str(found) for found in (_field(record, one) for one in ids) if found]
    if not trace:
        raise InvalidInputError(f"a record of {kind} needs one of {', '.join(ids)}, got none of them")
    value = _value([_field(record, one) for one in scores], [_field(record, one) for one in labels], scale, kind)
    if value is None:
        return None
    known_as = _field(record, "id")
    return _Score(trace, value, f"{kind}:{_field(record, name) or 'score'}",
                  None if known_as is None else f"{kind}:{known_as}")


def _field(record: Any, path: str) -> Any:
    if isinstance(record, Mapping) and path in record:
        return record[path]
    for name in path.split("."):
        record = record.get(name) if isinstance(record, Mapping) else getattr(record, name, None)
    return record


def _value(scores: Sequence[Any], labels: Sequence[Any], scale: tuple[float, float], kind: str) -> float | None:
    """Return the score in [-1, 1], None where there is none."""
    low, high = scale
    if not low < high:
        raise InvalidInputError(f"scale must be (worst, best) with the worst the smaller, got {scale}")
    for score in scores:
        if isinstance(score, bool):
            return 1.0 if score else -1.0
        if isinstance(score, Real) and float(score) == float(score):  # NaN stands for nothing in data frames
            if not low <= float(score) <= high:
                raise InvalidInputError(f"a score of {kind} must be in {scale}, got {score}; pass scale=(worst, best)")
            return 2.0 * (float(score) - low) / (high - low) - 1.0
    for label in labels:
        if isinstance(label, bool):
            return 1.0 if label else -1.0
        if isinstance(label, str) and label.strip().casefold() in _LABELS:
            return _LABELS[label.strip().casefold()]
    return None
