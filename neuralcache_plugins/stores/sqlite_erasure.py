"""Erasing inside one SQLite transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace

from neuralcache_plugins.contracts import Erasure, Receipt, session_parts
from neuralcache_plugins.stores import codec, erasure
from neuralcache_plugins.stores.codec import StoredRow
from neuralcache_plugins.stores.sqlite_answers import erase_answers
from neuralcache_plugins.stores.sqlite_schema import add_to_meta

SELECT = f"SELECT position, {', '.join(codec.COLUMNS)} FROM events"
"""The beginning of every query for stored rows."""

# CROSS keeps the order: a ranking is found by its index, feedback about a ranking is not
_WITH_RANKING = """CROSS JOIN events r
    ON r.kind = 'ranking' AND r.ranking_id = e.ranking_id AND r.namespace = e.namespace"""


@dataclass(slots=True)
class _Condition:
    """Part of a WHERE clause and its parameters."""

    terms: list[str] = field(default_factory=lambda: ["1"])
    values: list[str | float] = field(default_factory=list)

    def also(self, term: str, *values: str | float) -> None:
        self.terms.append(term)
        self.values.extend(values)

    @property
    def sql(self) -> str:
        return " AND ".join(self.terms)


def erase(connection: sqlite3.Connection, what: Erasure) -> Receipt:
    """Erase, start a new epoch if anything went, and return what was touched."""
    concerned: set[str] = set()
    receipt = _erase_events(connection, what, concerned)
    if what == Erasure(namespace=what.namespace) and what.namespace is not None:
        concerned.add(what.namespace)
    answers, answer_events = erase_answers(connection, what, concerned)
    receipt = replace(receipt, vectors=_erase_vectors(connection, what),
                      snapshots=_erase_snapshots(connection, concerned), answers=answers, answer_events=answer_events)
    if receipt != Receipt():
        # snapshots of namespaces that lost nothing stay valid and move along
        add_to_meta(connection, "epoch", 1)
        connection.execute("UPDATE snapshots SET epoch = epoch + 1 "
                           "WHERE epoch = (SELECT value - 1 FROM meta WHERE name = 'epoch')")
    return receipt


def _erase_events(connection: sqlite3.Connection, what: Erasure, concerned: set[str]) -> Receipt:
    if what.document_ids is None:
        return _erase_whole(connection, what, concerned)
    gone = set(what.document_ids)
    if not gone:
        return Receipt()
    # feedback first, while the rankings that say whether it is concerned are whole
    feedback = _cut_feedback(connection, what, gone, concerned)
    receipt = _cut_rankings(connection, what, gone, concerned)
    return replace(receipt, feedback=feedback + _delete_orphans(connection, concerned))


def _erase_whole(connection: sqlite3.Connection, what: Erasure, concerned: set[str]) -> Receipt:
    rankings = _ranking_condition(what)
    feedback = _feedback_condition(what)
    found_feedback = connection.execute(
        f"SELECT e.position, e.namespace FROM events e {_WITH_RANKING} WHERE {feedback.sql}", feedback.values
    ).fetchall()
    found_rankings = connection.execute(
        f"SELECT r.position, r.namespace, json_array_length(r.body, '$.documents') FROM events r "
        f"WHERE {rankings.sql}", rankings.values
    ).fetchall()
    concerned.update(row[1] for row in [*found_feedback, *found_rankings])
    _delete(connection, [row[0] for row in [*found_feedback, *found_rankings]])
    return Receipt(len(found_rankings), len(found_feedback), sum(row[2] for row in found_rankings))


def _cut_rankings(connection: sqlite3.Connection, what: Erasure, gone: Collection[str],
                  concerned: set[str]) -> Receipt:
    condition = _ranking_condition(what)
    condition.also(_holds("r.body", "$.documents", "value"), codec.json_texts(gone))
    rows = connection.execute(
        f"SELECT {_columns('r')} FROM events r WHERE {condition.sql}", condition.values
    ).fetchall()
    shown = 0
    for row in map(StoredRow._make, rows):
        ranking = codec.decode_ranking(row)
        left = erasure.ranking_without(ranking, gone)
        shown += len(ranking.document_ids) - (0 if left is None else len(left.document_ids))
        _replace(connection, row.position, None if left is None else codec.encode_ranking(left))
        concerned.add(row.namespace)
    return Receipt(rankings=len(rows), shown_documents=shown)


def _cut_feedback(connection: sqlite3.Connection, what: Erasure, gone: Collection[str], concerned: set[str]) -> int:
    condition = _feedback_condition(what)
    condition.also(_holds("e.body", "$.rewards", "json_extract(value, '$[0]')"), codec.json_texts(gone))
    rows = connection.execute(
        f"SELECT {_columns('e')}, {_columns('r')} FROM events e {_WITH_RANKING} WHERE {condition.sql}",
        condition.values
    ).fetchall()
    width = len(codec.COLUMNS) + 1
    for row in rows:
        stored = StoredRow._make(row[:width])
        feedback = codec.decode_feedback(stored, codec.decode_ranking(StoredRow._make(row[width:])))
        left = erasure.feedback_without(feedback, gone)
        if erasure.concerns_ranking(what, feedback.ranking) and not erasure.ranking_without(feedback.ranking, gone):
            left = None  # it goes with its ranking
        _replace(connection, stored.position, None if left is None else codec.encode_feedback(left))
        concerned.add(stored.namespace)
    return len(rows)


def _replace(connection: sqlite3.Connection, position: int, row: codec.Row | None) -> None:
    if row is None:
        _delete(connection, [position])
    else:
        connection.execute("UPDATE events SET body = ?, vector = ? WHERE position = ?", (*row[-2:], position))


def _delete_orphans(connection: sqlite3.Connection, namespaces: Collection[str]) -> int:
    """Delete feedback whose ranking went because no document was left in it."""
    return connection.execute(
        "DELETE FROM events WHERE kind = 'feedback' AND namespace IN (SELECT value FROM json_each(?)) "
        "AND NOT EXISTS (SELECT 1 FROM events r WHERE r.kind = 'ranking' AND r.ranking_id = events.ranking_id "
        "AND r.namespace = events.namespace)", (codec.json_texts(namespaces),)
    ).rowcount


def _erase_vectors(connection: sqlite3.Connection, what: Erasure) -> int:
    if what.session is not None:
        return 0  # the embedding cache knows no sessions
    condition = _Condition()
    if what.namespace is not None:
        condition.also("namespace = ?", what.namespace)
    if what.document_ids is not None:
        condition.also("document_id IN (SELECT value FROM json_each(?))", codec.json_texts(what.document_ids))
    if what.older_than is not None:
        condition.also("at < ?", what.older_than)
    count = connection.execute(f"DELETE FROM vectors WHERE {condition.sql}", condition.values).rowcount
    add_to_meta(connection, "vectors", -count)
    return count


def _erase_snapshots(connection: sqlite3.Connection, namespaces: Iterable[str]) -> int:
    return sum(connection.execute("DELETE FROM snapshots WHERE namespace = ?", (name,)).rowcount
               for name in sorted(namespaces))


def _ranking_condition(what: Erasure) -> _Condition:
    """Return which rankings ``r`` the erasure is about."""
    condition = _placed(what)
    condition.also("r.kind = 'ranking'")
    if what.older_than is not None:
        condition.also("r.at < ?", what.older_than)
    return condition


def _feedback_condition(what: Erasure) -> _Condition:
    """Return which feedback ``e`` about ranking ``r`` the erasure is about: feedback cannot outlive its ranking."""
    condition = _placed(what)
    condition.also("e.kind = 'feedback'")
    if what.namespace is not None:
        condition.also("e.namespace = ?", what.namespace)
    if what.session is not None:
        _in_session(condition, "e.session", what.session)
    if what.older_than is not None:
        condition.also("min(e.at, r.at) < ?", what.older_than)
    return condition


def _placed(what: Erasure) -> _Condition:
    condition = _Condition()
    if what.namespace is not None:
        condition.also("r.namespace = ?", what.namespace)
    if what.session is not None:
        _in_session(condition, "r.session", what.session)
    return condition


def _in_session(condition: _Condition, column: str, session: str) -> None:
    """Narrow to the session and its parts; two ranges of an index, no scan."""
    condition.also(f"({column} = ? OR ({column} > ? AND {column} < ?))", session, *session_parts(session))


def _holds(body: str, path: str, value: str) -> str:
    return (f"EXISTS (SELECT 1 FROM json_each({body}, '{path}') "
            f"WHERE {value} IN (SELECT value FROM json_each(?)))")


def _columns(table: str) -> str:
    return ", ".join(f"{table}.{name}" for name in ("position", *codec.COLUMNS))


def _delete(connection: sqlite3.Connection, positions: list[int]) -> None:
    connection.executemany("DELETE FROM events WHERE position = ?", [(position,) for position in positions])
