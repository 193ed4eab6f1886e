"""Cached answers in a SQLite file: the part of ``SqliteStore`` that makes it an ``AnswerStore``.

Triggers keep the numbers in ``meta`` and take an answer's body and documents along, so that every way in which an
answer can go is one plain DELETE.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from neuralcache_plugins.contracts import (
    AnswerBounds,
    AnswerCached,
    AnswerEvent,
    AnswerKey,
    AnswerServed,
    AnswerTotals,
    CachedAnswer,
    CachedQuestion,
    Erasure,
    FoundAnswers,
    Head,
    Lease,
    RecordedAnswer,
    Removal,
    StoredAnswers,
)
from neuralcache_plugins.stores import answer_codec, codec
from neuralcache_plugins.stores.answer_codec import FAILURE_KEPT_SECONDS, LEAST_COST, ROOM
from neuralcache_plugins.stores.sqlite_connections import Connections
from neuralcache_plugins.stores.sqlite_schema import read_meta

_MARK = "SELECT value FROM meta WHERE name = 'answer_changes'"
_COLUMNS = ("a.entry_id, a.namespace, a.scope, a.question_key, b.question, b.kind, b.payload, a.created_at, "
            "a.expires_at, b.documents, b.encoder, b.vector, a.cost, a.seconds, a.hits")
# one statement, so that mark, head and answers are of one moment
_FIND = f"""SELECT m.value, (SELECT value FROM meta WHERE name = 'epoch'),
    (SELECT coalesce(max(position), 0) FROM answer_events), {_COLUMNS} FROM meta m LEFT JOIN json_each(?) k
    LEFT JOIN answers a ON a.namespace = ? AND a.scope = json_extract(k.value, '$[0]')
        AND a.question_key = json_extract(k.value, '$[1]')
    LEFT JOIN answer_bodies b ON b.number = a.number
    WHERE m.name = 'answer_changes'"""
_GET = f"""SELECT {_COLUMNS} FROM json_each(?) k CROSS JOIN answers a ON a.entry_id = k.value AND a.namespace = ?
    CROSS JOIN answer_bodies b ON b.number = a.number"""
_QUESTIONS = """SELECT a.number, a.entry_id, a.scope, b.question, b.encoder, b.vector, b.documents, a.created_at,
    a.expires_at, b.digest FROM answers a CROSS JOIN answer_bodies b ON b.number = a.number
    WHERE a.namespace = ? AND a.number > ? AND b.vector IS NOT NULL ORDER BY a.number LIMIT ?"""
_DOCUMENT_BARRED = """SELECT 1 FROM json_each(:documents) d CROSS JOIN answer_barriers r
    ON r.namespace = :namespace AND r.kind = 'document' AND r.name = json_extract(d.value, '$[0]')
    WHERE CASE WHEN r.version IS NULL THEN r.mark > :mark ELSE r.version <> json_extract(d.value, '$[1]') END"""
_PLACE_BARRED = """SELECT 1 FROM answer_barriers WHERE namespace = :namespace AND mark > :mark
    AND (kind = 'all' OR (kind = 'scope' AND name = :scope))"""
_WORTH = f"(1.0 + hits) * (cost + {LEAST_COST}) / (max(? - created_at, 0) + 3600)"
_INSERT_EVENT = f"INSERT INTO answer_events ({', '.join(answer_codec.COLUMNS)}) VALUES (?, ?, ?, ?, ?, ?, ?)"
_SELECT_EVENT = f"SELECT position, {', '.join(answer_codec.COLUMNS)} FROM answer_events"


_TOTALS = """SELECT kind, coalesce(json_extract(body, '$.kind'), json_extract(body, '$.reason'),
    json_extract(body, '$.source'), ''), count(*), max(position), sum(json_extract(body, '$.correct') = 0),
    sum(json_extract(body, '$.cost')), sum(json_extract(body, '$.seconds'))
    FROM answer_events WHERE namespace = ? AND position > ? GROUP BY 1, 2"""


class AnswersInSqlite:
    """What ``AnswerStore`` asks for, on the connections of a ``SqliteStore``."""

    _connections: Connections

    def put_answers(self, answers: Sequence[CachedAnswer], *, bounds: AnswerBounds,
                    mark: int | None = None) -> StoredAnswers:
        """Store answers in one transaction."""
        with self._connections.lock:
            self._connections.check_place()
            with self._connections.transaction() as connection:
                before = read_meta(connection, "answer_changes")
                stored = tuple([_put(connection, answer, bounds, mark) for answer in answers])
                kept = [answer for answer, done in zip(answers, stored, strict=True) if done]
                evicted = _make_room(connection, kept, bounds)
                return StoredAnswers(stored, before, read_meta(connection, "answer_changes"), evicted)

    def find_answers(self, namespace: str, keys: Sequence[AnswerKey]) -> FoundAnswers:
        """Return the answers under these keys, and where the store stands."""
        with self._connections.reading() as connection:
            rows = connection.execute(_FIND, (json.dumps(keys), namespace)).fetchall()
        mark, epoch, position = rows[0][:3]
        found = [_answer(row[3:]) for row in rows if row[3] is not None]
        return FoundAnswers({answer.key: answer for answer in found}, mark, Head(epoch, position))

    def get_answers(self, namespace: str, entry_ids: Sequence[str]) -> dict[str, CachedAnswer]:
        """Return the answers with these ids."""
        with self._connections.reading() as connection:
            rows = connection.execute(_GET, (codec.json_texts(entry_ids), namespace)).fetchall()
        return {row[0]: _answer(row) for row in rows}

    def read_questions(self, namespace: str, *, after: int = 0, limit: int = 10_000) -> list[CachedQuestion]:
        """Return questions with vectors, by number."""
        with self._connections.reading() as connection:
            rows = connection.execute(_QUESTIONS, (namespace, after, limit)).fetchall()
        return [CachedQuestion(number, entry_id, scope, answer_codec.text(question), encoder,
                               np.frombuffer(vector, codec.HALF).astype(np.float16, copy=False),
                               answer_codec.documents(documents), *rest)
                for number, entry_id, scope, question, encoder, vector, documents, *rest in rows]

    def answers_mark(self) -> int:
        """Return the mark; one look at one row."""
        with self._connections.reading() as connection:
            mark: int = connection.execute(_MARK).fetchone()[0]
            return mark

    def remove_answers(self, what: Removal) -> int:
        """Remove answers and bar their way back, in one transaction."""
        with self._connections.lock:
            self._connections.check_place()
            with self._connections.transaction() as connection:
                terms, values = _concerned(what)
                removed = connection.execute(f"DELETE FROM answers WHERE {' AND '.join(terms)}", values).rowcount
                _bar(connection, what)
                return removed

    def record_answers(self, events: Sequence[AnswerEvent], *, withdraw: Sequence[str] = ()) -> tuple[int, ...]:
        """Append events in one transaction."""
        with self._connections.lock:
            self._connections.check_place()
            with self._connections.transaction() as connection:
                positions = tuple([_append(connection, event) for event in events])
                namespaces = codec.json_texts({event.namespace for event in events})
                if withdraw:
                    connection.execute("DELETE FROM answers WHERE entry_id IN (SELECT value FROM json_each(?)) AND "
                                       "namespace IN (SELECT value FROM json_each(?))",
                                       (codec.json_texts(withdraw), namespaces))
                return positions

    def read_answer_events(self, *, after: int = 0, namespace: str | None = None,
                           kinds: Sequence[type[AnswerEvent]] | None = None,
                           limit: int = 1000) -> list[RecordedAnswer]:
        """Return events by position."""
        terms, values = ["position > ?"], [after]
        parameters: list[str] = []
        if namespace is not None:
            terms.append("namespace = ?")
            parameters.append(namespace)
        if kinds is not None and len(kinds) == 1:  # asked at every look
            terms.append("kind = ?")
            parameters.append(answer_codec.KINDS[kinds[0]])
        elif kinds is not None:
            terms.append("kind IN (SELECT value FROM json_each(?))")
            parameters.append(codec.json_texts([answer_codec.KINDS[kind] for kind in kinds]))
        query = f"{_SELECT_EVENT} WHERE {' AND '.join(terms)} ORDER BY position LIMIT ?"
        with self._connections.reading() as connection:
            rows = connection.execute(query, [*values, *parameters, limit]).fetchall()
        return [RecordedAnswer(row[0], answer_codec.decode(row[1:])) for row in rows]

    def answer_totals(self, namespace: str, *, after: int = 0) -> AnswerTotals:
        """Return the events counted."""
        with self._connections.reading() as connection:
            rows = connection.execute(_TOTALS, (namespace, after)).fetchall()
        counts: dict[str, dict[str, int]] = {kind: {} for kind in answer_codec.KINDS.values()}
        for kind, what, count, *_ in rows:
            counts[kind][what] = count
        return AnswerTotals(
            position=max([after, *(row[3] for row in rows)]), put=sum(counts["cached"].values()),
            served=counts["served"], missed=counts["missed"], judged=counts["judged"],
            wrong={what: wrong for kind, what, _, _, wrong, *_ in rows if kind == "judged" and wrong},
            cost_saved=sum(row[5] or 0.0 for row in rows if row[0] == "served"),
            seconds_saved=sum(row[6] or 0.0 for row in rows if row[0] == "served"),
        )

    def served_answer(self, hit_id: str, *, namespace: str) -> AnswerServed | None:
        """Return a serving."""
        query = f"{_SELECT_EVENT} WHERE kind = 'served' AND event_id = ? AND namespace = ?"
        with self._connections.reading() as connection:
            row = connection.execute(query, (hit_id, namespace)).fetchone()
        event = None if row is None else answer_codec.decode(row[1:])
        return event if isinstance(event, AnswerServed) else None

    def acquire_lease(self, name: str, owner: str, *, now: float, seconds: float) -> Lease:
        """Return the lease, one's own or another's."""
        with self._connections.lock, self._connections.transaction() as connection:
            connection.execute("DELETE FROM leases WHERE expires_at < ?", (now - FAILURE_KEPT_SECONDS,))
            connection.execute(
                "INSERT INTO leases VALUES (?, ?, ?, NULL) ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, "
                "expires_at = excluded.expires_at, failure = NULL "
                "WHERE expires_at <= ? OR failure IS NOT NULL OR owner = excluded.owner",
                (name, owner, now + seconds, now))
            return Lease(*_find_lease(connection, name))

    def release_lease(self, name: str, owner: str, *, failure: str | None = None, now: float = 0.0) -> None:
        """Give a lease up."""
        with self._connections.lock, self._connections.transaction() as connection:
            if failure is None:
                connection.execute("DELETE FROM leases WHERE name = ? AND owner = ?", (name, owner))
            else:
                connection.execute("UPDATE leases SET failure = ?, expires_at = ? WHERE name = ? AND owner = ?",
                                   (failure, now + FAILURE_KEPT_SECONDS, name, owner))

    def lease(self, name: str) -> Lease | None:
        """Return the lease as it stands."""
        with self._connections.reading() as connection:
            row = _find_lease(connection, name)
        return None if row is None else Lease(*row)


def erase_answers(connection: sqlite3.Connection, what: Erasure, concerned: set[str]) -> tuple[int, int]:
    """Erase answers and events within an erasure's transaction; return how many of each.

    Namespaces that lose events join ``concerned``: what was learned from them has to go too.
    """
    if what.session is not None:
        return 0, 0  # answers know no sessions
    terms, values = _concerned_by_erasure(what)
    where = " AND ".join(terms)
    # events first: afterwards nobody knows which entries they were about
    events = _delete_events(
        connection, f"(entry_id, namespace) IN (SELECT entry_id, namespace FROM answers WHERE {where})", values,
        concerned)
    events += _erase_events(connection, what, concerned)
    answers = connection.execute(f"DELETE FROM answers WHERE {where}", values).rowcount
    barriers = _erase_barriers(connection, what)
    if answers or events or barriers:
        # what was read before must not be put back
        connection.execute("UPDATE meta SET value = value + 1 WHERE name = 'answer_changes'")
        connection.execute(f"UPDATE meta SET value = ({_MARK}) WHERE name = 'answers_erased'")
    return answers, events


def count_answers(connection: sqlite3.Connection) -> Mapping[str, int]:
    """Return how many answers there are, their bytes, and the events about them."""
    events = connection.execute("SELECT count(*) FROM answer_events").fetchone()[0]
    return {"entries": read_meta(connection, "answers"), "bytes": read_meta(connection, "answer_bytes"),
            "events": events}


def _put(connection: sqlite3.Connection, answer: CachedAnswer, bounds: AnswerBounds, mark: int | None) -> bool:
    documents = answer_codec.documents_text(answer.documents)
    if answer.size > bounds.max_bytes or bounds.max_entries < 1 or _is_barred(connection, answer, documents, mark):
        return False
    connection.execute("DELETE FROM answers WHERE (namespace = ? AND scope = ? AND question_key = ?) "
                       "OR (entry_id = ? AND namespace = ?)",
                       (answer.namespace, *answer.key, answer.entry_id, answer.namespace))
    number = connection.execute(
        "INSERT INTO answers (namespace, scope, question_key, entry_id, created_at, expires_at, bytes, hits, cost, "
        "seconds) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (answer.namespace, *answer.key, answer.entry_id, answer.created_at, answer.expires_at, answer.size,
         answer.hits, answer.cost, answer.seconds)).lastrowid
    connection.execute("INSERT INTO answer_bodies VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                       (number, answer_codec.blob(answer.question), answer.kind, answer.payload, answer.digest,
                        answer.encoder, codec.to_half(answer.vector), documents))
    connection.execute("INSERT OR IGNORE INTO answer_documents SELECT json_extract(value, '$[0]'), ?, "
                       "json_extract(value, '$[1]') FROM json_each(?)", (number, documents))
    _append(connection, AnswerCached(answer.entry_id, answer.namespace, answer.created_at, answer.scope, answer.cost,
                                     answer.seconds))
    return True


def _is_barred(connection: sqlite3.Connection, answer: CachedAnswer, documents: str, mark: int | None) -> bool:
    # without a mark nobody knows when the answer was begun: only another version speaks against it
    values = {"namespace": answer.namespace, "documents": documents, "scope": answer.scope,
              "mark": 2**62 if mark is None else mark}
    if answer.documents and connection.execute(_DOCUMENT_BARRED, values).fetchone():
        return True
    if mark is None:
        return False
    return (read_meta(connection, "answers_erased") > mark
            or connection.execute(_PLACE_BARRED, values).fetchone() is not None)


def _make_room(connection: sqlite3.Connection, fresh: Sequence[CachedAnswer], bounds: AnswerBounds) -> int:
    if not fresh or not _is_full(connection, bounds):
        return 0
    expired = connection.execute("DELETE FROM answers WHERE expires_at <= ?", (bounds.expired_before,)).rowcount
    if not _is_full(connection, bounds):
        return expired
    # some room more than needed: sorting all of them is what takes long
    entries = read_meta(connection, "answers") - (bounds.max_entries - bounds.max_entries // ROOM)
    size = read_meta(connection, "answer_bytes") - (bounds.max_bytes - bounds.max_bytes // ROOM)
    now = max(answer.created_at for answer in fresh)
    worst = connection.execute(
        "SELECT number, bytes FROM answers "
        f"ORDER BY entry_id IN (SELECT value FROM json_each(?)), {_WORTH}, number",
        (codec.json_texts([answer.entry_id for answer in fresh]), now))
    going: list[tuple[int]] = []
    for number, taken in worst:
        if entries <= 0 and size <= 0:
            break
        going.append((number,))
        entries, size = entries - 1, size - taken
    connection.executemany("DELETE FROM answers WHERE number = ?", going)
    return expired + len(going)


def _is_full(connection: sqlite3.Connection, bounds: AnswerBounds) -> bool:
    return (read_meta(connection, "answers") > bounds.max_entries
            or read_meta(connection, "answer_bytes") > bounds.max_bytes)


def _concerned(what: Removal) -> tuple[list[str], list[str | float]]:
    terms, values = ["namespace = ?"], [what.namespace]
    parameters: list[str | float] = [*values]
    if what.scope is not None:
        terms.append("scope = ?")
        parameters.append(what.scope)
    if what.older_than is not None:
        terms.append("created_at < ?")
        parameters.append(what.older_than)
    if what.documents is not None:
        terms.append("number IN (SELECT d.number FROM json_each(?) k CROSS JOIN answer_documents d "
                     "ON d.document_id = json_extract(k.value, '$[0]') "
                     "WHERE d.version IS NOT json_extract(k.value, '$[1]'))")
        parameters.append(answer_codec.documents_text(what.documents.items()))
    return terms, parameters


def _bar(connection: sqlite3.Connection, what: Removal) -> None:
    connection.execute("UPDATE meta SET value = value + 1 WHERE name = 'answer_changes'")
    if what.documents is not None:
        connection.execute(
            f"INSERT OR REPLACE INTO answer_barriers SELECT ?, 'document', json_extract(value, '$[0]'), "
            f"json_extract(value, '$[1]'), ({_MARK}) FROM json_each(?)",
            (what.namespace, answer_codec.documents_text(what.documents.items())))
    elif what.older_than is None:
        kind, name = ("all", "") if what.scope is None else ("scope", what.scope)
        connection.execute(f"INSERT OR REPLACE INTO answer_barriers VALUES (?, ?, ?, NULL, ({_MARK}))",
                           (what.namespace, kind, name))


def _concerned_by_erasure(what: Erasure) -> tuple[list[str], list[str | float]]:
    terms: list[str] = ["1"]
    values: list[str | float] = []
    if what.namespace is not None:
        terms.append("namespace = ?")
        values.append(what.namespace)
    if what.older_than is not None:
        terms.append("created_at < ?")
        values.append(what.older_than)
    if what.document_ids is not None:
        terms.append("number IN (SELECT number FROM answer_documents WHERE document_id IN "
                     "(SELECT value FROM json_each(?)))")
        values.append(codec.json_texts(what.document_ids))
    return terms, values


def _erase_events(connection: sqlite3.Connection, what: Erasure, concerned: set[str]) -> int:
    """Erase events by namespace and age; those about documents are found through their answers alone."""
    if what.document_ids is not None:
        return 0
    terms: list[str] = ["1"]
    values: list[str | float] = []
    if what.namespace is not None:
        terms.append("namespace = ?")
        values.append(what.namespace)
    if what.older_than is not None:
        terms.append("at < ?")
        values.append(what.older_than)
    return _delete_events(connection, " AND ".join(terms), values, concerned)


def _delete_events(connection: sqlite3.Connection, where: str, values: Sequence[str | float],
                   concerned: set[str]) -> int:
    concerned.update(row[0] for row in connection.execute(
        f"SELECT DISTINCT namespace FROM answer_events WHERE {where}", values))
    return connection.execute(f"DELETE FROM answer_events WHERE {where}", values).rowcount


def _erase_barriers(connection: sqlite3.Connection, what: Erasure) -> int:
    """Erase the ids of documents that were removed; barriers have no age, so by age they go with the last answer."""
    terms: list[str] = ["1"]
    values: list[str] = []
    if what.namespace is not None:
        terms.append("namespace = ?")
        values.append(what.namespace)
    if what.document_ids is not None:
        terms.append("kind = 'document' AND name IN (SELECT value FROM json_each(?))")
        values.append(codec.json_texts(what.document_ids))
    if what.older_than is not None:
        terms.append("namespace NOT IN (SELECT namespace FROM answers)")
    return connection.execute(f"DELETE FROM answer_barriers WHERE {' AND '.join(terms)}", values).rowcount


def _append(connection: sqlite3.Connection, event: AnswerEvent) -> int:
    row = answer_codec.encode(event)
    found = connection.execute("SELECT position FROM answer_events WHERE kind = ? AND event_id = ? AND namespace = ?",
                               (row[0], row[3], row[1])).fetchone()
    if found:
        return int(found[0])
    if isinstance(event, AnswerServed):
        connection.execute("UPDATE answers SET hits = hits + 1 WHERE entry_id = ? AND namespace = ?",
                           (event.entry_id, event.namespace))
    return int(connection.execute(_INSERT_EVENT, row).lastrowid or 0)


def _find_lease(connection: sqlite3.Connection, name: str) -> Any:
    return connection.execute("SELECT owner, expires_at, failure FROM leases WHERE name = ?", (name,)).fetchone()


def _answer(row: Iterable[Any]) -> CachedAnswer:
    (entry_id, namespace, scope, question_key, question, kind, payload, created_at, expires_at, documents, encoder,
     vector, cost, seconds, hits) = row
    return CachedAnswer(
        entry_id, namespace, scope, question_key, answer_codec.text(question), kind, payload, created_at, expires_at,
        answer_codec.documents(documents), encoder,
        None if vector is None else np.frombuffer(vector, codec.HALF).astype(np.float16, copy=False),
        cost, seconds, hits,
    )
