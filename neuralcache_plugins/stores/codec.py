"""Events as rows: columns to search by, one compact JSON body for the rest, vectors as float16.

Nothing that is read here is executed (no pickle). Numbers keep six significant digits, ``at`` keeps all of its own;
an event that has been through here once comes back unchanged from then on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from functools import lru_cache
from itertools import chain
from json.encoder import encode_basestring, encode_basestring_ascii
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from neuralcache_plugins.contracts import Event, FeedbackGiven, RankingServed, Vector
from neuralcache_plugins.errors import InvalidInputError, StoreCorruptError

RANKING = "ranking"
FEEDBACK = "feedback"

COLUMNS = ("kind", "namespace", "at", "ranking_id", "session", "query_key", "feedback_id", "source", "run_id",
           "parent_run_id", "trace_id", "span_id", "body", "vector")
"""The columns of one event, in the order of an encoded row."""

FEEDBACK_COLUMNS = ("kind", "namespace", "at", "ranking_id", "session", "feedback_id", "source", "body", "vector")
"""Those that feedback fills; it leaves the others empty."""

Row: TypeAlias = tuple[str, str, float, str, str | None, str | None, str | None, str | None, str | None, str | None,
                       str | None, str | None, str, bytes | None]
"""One encoded event: the values of ``COLUMNS``."""

_PARSE = json.JSONDecoder(parse_int=float).raw_decode  # %g writes 1.0 as 1

HALF = np.dtype("<f2")

_DAMAGE = (ValueError, KeyError, IndexError, TypeError, AttributeError)
"""What decoding raises when a row is not what was written."""


class StoredRow(NamedTuple):
    """One row as a store hands it out: the position, then ``COLUMNS``."""

    position: int
    kind: str
    namespace: str
    at: float
    ranking_id: str
    session: str | None
    query_key: str
    feedback_id: str
    source: str
    run_id: str | None
    parent_run_id: str | None
    trace_id: str | None
    span_id: str | None
    body: str
    vector: bytes | None


def check(event: Event) -> None:
    """Refuse feedback that does not belong to the ranking it carries."""
    if isinstance(event, RankingServed):
        return
    about = event.ranking
    if event.namespace != about.namespace or event.ranking_id != about.ranking_id:
        raise InvalidInputError(
            f"feedback {event.feedback_id!r} is about ranking {event.ranking_id!r} in {event.namespace!r} "
            f"but carries ranking {about.ranking_id!r} in {about.namespace!r}"
        )


def encode_ranking(event: RankingServed) -> Row:
    """Return the row of a ranking."""
    return (RANKING, event.namespace, event.at, event.ranking_id, event.session, event.query_key, None, None,
            event.run_id, event.parent_run_id, event.trace_id, event.span_id, _ranking_body(event),
            to_half(event.query_vector))


def encode_feedback(event: FeedbackGiven) -> Row:
    """Return the row of feedback; the session is its ranking's, so that both are found by it."""
    rewards = ",".join([f"[{_text(name)},{_number(reward)}]" for name, reward in event.rewards])
    return (FEEDBACK, event.namespace, event.at, event.ranking_id, event.ranking.session, None, event.feedback_id,
            event.source, None, None, None, None, f'{{"rewards":[{rewards}]}}', to_half(event.document_vector))


def decode_ranking(row: StoredRow) -> RankingServed:
    """Return the ranking of a row; ``StoreCorruptError`` if the row is damaged."""
    try:
        return _decode_ranking(row)
    except _DAMAGE as error:
        raise _damaged(row) from error


def decode_feedback(row: StoredRow, ranking: RankingServed) -> FeedbackGiven:
    """Return the feedback of a row, about a ranking already decoded; ``StoreCorruptError`` if the row is damaged."""
    try:
        return _decode_feedback(row, ranking)
    except _DAMAGE as error:
        raise _damaged(row) from error


def _damaged(row: StoredRow) -> StoreCorruptError:
    # without the row's content, which is nobody's to log
    return StoreCorruptError(
        f"the event at position {row[0]} is damaged; move the store aside and start fresh with: "
        "python -m neuralcache_plugins doctor --quarantine"
    )


def _decode_ranking(row: StoredRow) -> RankingServed:
    (_, _, namespace, at, ranking_id, session, query_key, _, _, run_id, parent_run_id, trace_id, span_id, text,
     vector) = row
    body = _load(text)
    texts = body.get("document_texts")
    return RankingServed(
        ranking_id, namespace, at, query_key, body["encoder"], from_half(vector), tuple(body["documents"]),
        tuple(map(int, body["positions"])), tuple(body["scores"]), tuple(body["cold"]),
        {name: tuple(values) for name, values in body["signals"].items()}, tuple(body["propensities"]),
        int(body["candidates"]), body["trust"], tuple(body.get("degraded", ())), session, run_id, parent_run_id,
        trace_id, span_id, body.get("query_text"), None if texts is None else tuple(texts),
    )


def _decode_feedback(row: StoredRow, ranking: RankingServed) -> FeedbackGiven:
    (_, _, namespace, at, ranking_id, _, _, feedback_id, source, _, _, _, _, text, vector) = row
    rewards = tuple([(name, reward) for name, reward in _PARSE(text)[0]["rewards"]])
    return FeedbackGiven(feedback_id, ranking_id, namespace, at, source, rewards, ranking, from_half(vector))


def to_half(vector: npt.NDArray[Any] | None) -> bytes | None:
    """Return little-endian float16 bytes."""
    return None if vector is None else vector.astype(HALF, copy=False).tobytes()


def from_half(stored: bytes | None) -> Vector | None:
    """Return float32 from little-endian float16 bytes."""
    return None if stored is None else np.frombuffer(stored, HALF).astype(np.float32)


def json_texts(values: Collection[str]) -> str:
    """Return a JSON array of strings, to hand a list of any length to SQL as one parameter."""
    quoted = ",".join(map(encode_basestring, values))
    return f"[{quoted if _is_unicode(quoted) else ','.join(map(_text, values))}]"


def json_text(value: str | None) -> str | None:
    """Return a JSON string, for SQL to unquote: the way in for text that need not be Unicode."""
    return None if value is None else _text(value)


def _ranking_body(event: RankingServed) -> str:
    parts = [
        f'"encoder":{_text(event.encoder)},"documents":{json_texts(event.document_ids)}',
        f'"positions":[{",".join(map(str, event.positions))}],"candidates":{event.candidates}',
        _ranking_numbers(event),
    ]
    # what is mostly absent is left out
    if event.degraded:
        parts.append(f'"degraded":{json_texts(event.degraded)}')
    if event.query_text is not None:
        parts.append(f'"query_text":{_text(event.query_text)}')
    if event.document_texts is not None:
        parts.append(f'"document_texts":{json_texts(event.document_texts)}')
    return f"{{{','.join(parts)}}}"


def _ranking_numbers(event: RankingServed) -> str:
    # one format for all of them: formatting each list by itself takes twice as long
    shown = len(event.document_ids)
    numbers = (*event.scores, *event.cold, *event.propensities, *chain.from_iterable(event.signals.values()),
               event.trust)
    if len(numbers) != (3 + len(event.signals)) * shown + 1:
        raise InvalidInputError(
            f"ranking {event.ranking_id!r} has sequences of other lengths than its {shown} documents"
        )
    if math.isfinite(sum(numbers)):
        return _layout(shown, tuple(event.signals), "%g") % numbers  # six significant digits
    return _layout(shown, tuple(event.signals), "%s") % tuple(map(_number, numbers))


@lru_cache(maxsize=256)
def _layout(shown: int, signals: tuple[str, ...], slot: str) -> str:
    row = f"[{','.join([slot] * shown)}]"
    columns = ",".join([f"{_text(name).replace('%', '%%')}:{row}" for name in signals])
    return f'"scores":{row},"cold":{row},"propensities":{row},"signals":{{{columns}}},"trust":{slot}'


def _number(value: float) -> str:
    if math.isfinite(value):
        return f"{value:g}"
    if math.isnan(value):
        return "null"
    return "1e999" if value > 0 else "-1e999"  # JSON has no infinity; every reader overflows to it


def _text(value: str) -> str:
    quoted = encode_basestring(value)
    return quoted if _is_unicode(quoted) else encode_basestring_ascii(value)


def _is_unicode(text: str) -> bool:
    # lone surrogates, as in file names that are not UTF-8, have no UTF-8 form; escaped they survive
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _load(text: str) -> dict[str, Any]:
    body: dict[str, Any] = _PARSE(text)[0]
    if "null" in text:
        _restore_nan(body)
    return body


def _restore_nan(body: dict[str, Any]) -> None:
    for name in ("scores", "cold", "propensities"):
        body[name] = [math.nan if value is None else value for value in body[name]]
    body["signals"] = {name: [math.nan if value is None else value for value in values]
                       for name, values in body["signals"].items()}
    body["trust"] = math.nan if body["trust"] is None else body["trust"]
