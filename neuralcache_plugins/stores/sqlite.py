"""The default store: one SQLite file, shared by any number of threads and processes on one machine.

Queryable by any SQL tool through the views ``rankings``, ``shown_documents`` and ``feedback`` (``sqlite_schema``).
"""

from __future__ import annotations

import logging
import sqlite3
import weakref
from collections.abc import Hashable, Sequence
from datetime import UTC, datetime
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from neuralcache_plugins.contracts import (
    Appended,
    Erasure,
    Event,
    FeedbackGiven,
    Head,
    RankingServed,
    Receipt,
    Recorded,
    Snapshot,
    StoredVector,
    StoreHealth,
)
from neuralcache_plugins.errors import InvalidInputError, StoreError
from neuralcache_plugins.stores import codec, erasure, sqlite_erasure
from neuralcache_plugins.stores.codec import StoredRow
from neuralcache_plugins.stores.sqlite_answers import AnswersInSqlite, count_answers
from neuralcache_plugins.stores.sqlite_connections import Connections, Synchronous, not_unicode, translate
from neuralcache_plugins.stores.sqlite_erasure import SELECT
from neuralcache_plugins.stores.sqlite_schema import (
    MIGRATIONS,
    TRACE_IDS,
    Migration,
    add_to_meta,
    check_file,
    migrate,
    read_meta,
)

_LOG = logging.getLogger(__name__)

_INSERT = f"INSERT INTO events ({', '.join(codec.COLUMNS)}) VALUES ({', '.join('?' * len(codec.COLUMNS))})"
_FIND_RANKING = "SELECT position FROM events WHERE kind = 'ranking' AND ranking_id = ? AND namespace = ?"
_FIND_FEEDBACK = "SELECT position FROM events WHERE kind = 'feedback' AND feedback_id = ? AND namespace = ?"
# SQLite checks its pages, not what is written on them
_COUNT_DAMAGED = "SELECT count(*) FROM events WHERE NOT json_valid(body) OR coalesce(length(vector), 0) % 2"
_FIND_BOTH = f"SELECT ({_FIND_FEEDBACK}), ({_FIND_RANKING})"
_PATIENCE_SECONDS = 0.05
_EPOCH = "SELECT value FROM meta WHERE name = 'epoch'"
_SLOTS = {name: f"?{number}" for number, name in enumerate(codec.FEEDBACK_COLUMNS, 1)}
_ANSWER = _SLOTS | {
    "kind": f"(SELECT {_SLOTS['kind']} FROM events WHERE kind = 'ranking' AND ranking_id = {_SLOTS['ranking_id']} "
            f"AND namespace = {_SLOTS['namespace']} AND ({_EPOCH}) = coalesce(?{len(_SLOTS) + 1}, ({_EPOCH})))"
}
_INSERT_ANSWER = f"INSERT INTO events ({', '.join(_ANSWER)}) VALUES ({', '.join(_ANSWER.values())})"
"""Feedback for a ranking that is stored, in an epoch that is not over; otherwise its kind is NULL, which the table
refuses. (With the condition in a WHERE clause SQLite would go by way of a temporary table: a fifth more time.)"""
_of_feedback = itemgetter(*map(codec.COLUMNS.index, _ANSWER))
_TRACED = (
    f"{SELECT} WHERE kind = 'ranking' AND position IN ("
    + " UNION ".join(f"SELECT position FROM events WHERE {name} = ?" for name in TRACE_IDS)
    + ") AND namespace = ? ORDER BY position DESC LIMIT ?"
)


class SqliteStore(AnswersInSqlite):
    """Keeps everything in one SQLite file, or in one memory database (``path=":memory:"``).

    Writes take turns on one connection; reads run beside them. ``synchronous="normal"`` survives the death of the
    process, ``"full"`` also loss of power. A new file can be read by its owner only.
    """

    def __init__(self, path: str | Path = ":memory:", *, synchronous: Synchronous = "normal",
                 busy_timeout_seconds: float = 5.0, migrations: Sequence[Migration] = MIGRATIONS) -> None:
        # absolute, because connections are opened later, when the current directory may be another
        self._path = None if str(path) == ":memory:" else Path(path).expanduser().absolute()
        self._connections = Connections(self._path, place=self.url, synchronous=synchronous,
                                        busy_timeout_seconds=busy_timeout_seconds)
        self._last_appended = 0
        self._erasures = 0
        try:
            with self._connections.lock, self._connections.translating():
                connection = self._connections.writer()
                check_file(connection, migrations, place=self.url)
                self._connections.switch_to_wal()
                migrate(connection, migrations)
                self._sign = self._make_sign(connection, 0)
        except BaseException:
            self._connections.close()
            raise
        # a store that nobody closed is closed when it is collected or the interpreter ends
        self._finalizer = weakref.finalize(self, self._connections.close)

    @property
    def url(self) -> str:
        """The URL that opens this store."""
        return "sqlite:///:memory:" if self._path is None else f"sqlite:///{self._path.as_posix()}"

    def hash_key(self) -> bytes:
        """Return the random key that was made with the file."""
        with self._connections.reading() as connection:
            key: bytes = connection.execute("SELECT value FROM meta WHERE name = 'hash_key'").fetchone()[0]
            return key

    def append(self, events: Sequence[Event], *, epoch: int | None = None) -> Appended:
        """Append all events that are not there yet, in one transaction."""
        rows = [_encode(event) for event in events]  # before the lock is taken
        with self._connections.lock:
            self._connections.check_place()
            if len(events) == 1 and isinstance(events[0], FeedbackGiven):
                appended = self._append_answer(rows[0], epoch)
                if appended is not None:
                    return appended
            with self._connections.transaction() as connection:
                if epoch is not None:
                    erasure.check_epoch(read_meta(connection, "epoch"), epoch)
                stored = [_append(connection, event, row) for event, row in zip(events, rows, strict=True)]
                positions = tuple([own for *_, own in stored])
                last = max((self._last_appended, *positions))
                # inside the transaction: what others write later must change the sign
                sign = self._make_sign(connection, last)
                before = (sign[0], self._last_appended, *sign[2:]) if max(map(len, stored), default=0) < 2 else None
            # only now: whoever sees the new sign must also find the events
            self._last_appended, self._sign = last, sign
        return Appended(positions, before, sign)

    def _append_answer(self, row: codec.Row, epoch: int | None) -> Appended | None:
        """Append feedback in one statement; None, and nothing done, if it is stored already or its ranking is not.

        Somebody waits for it, and a statement that is a transaction by itself takes a third less than three.
        """
        try:
            connection = self._connections.writer()
            position = int(connection.execute(_INSERT_ANSWER, (*_of_feedback(row), epoch)).lastrowid or 0)
        except sqlite3.IntegrityError:
            return None
        except sqlite3.Error as error:
            raise translate(error, self.url) from error
        except UnicodeEncodeError as error:
            raise not_unicode(error) from error
        # of the version last seen: if others have written since, the next look will show another
        version, _, erasures, opened = self._sign
        before = (version, self._last_appended, erasures, opened)
        self._last_appended = position
        return Appended((position,), before, (version, position, erasures, opened))

    def read(self, *, after: int = 0, upto: int | None = None, namespace: str | None = None,
             limit: int = 1000) -> list[Recorded]:
        """Return events by position; at most two queries."""
        terms, values = ["position > ?"], [after]
        if upto is not None:
            terms.append("position <= ?")
            values.append(upto)
        query = f"{SELECT} WHERE {' AND '.join(terms)}"
        if namespace is not None:
            query += " AND namespace = ?"
        parameters = [*values, *([] if namespace is None else [namespace]), limit]
        with self._connections.reading() as connection:
            # one transaction: between two queries an erasure could take rankings away from their feedback
            connection.execute("BEGIN")
            try:
                rows = connection.execute(f"{query} ORDER BY position LIMIT ?", parameters).fetchall()
                earlier = _rankings_before(connection, rows)
            finally:
                connection.execute("COMMIT")
        return _decode(rows, earlier)

    def head(self) -> Head:
        """Return where the log stands."""
        with self._connections.reading() as connection:
            return Head(*connection.execute(
                "SELECT (SELECT value FROM meta WHERE name = 'epoch'), coalesce(max(position), 0) FROM events"
            ).fetchone())

    def sign(self) -> Hashable:
        """Return a sign that costs one ``PRAGMA data_version``; the last one while this object is writing."""
        connections = self._connections
        # what was told here counts in the next ranking, even if that has to wait for a moment
        patience = _PATIENCE_SECONDS if self._sign[1] != self._last_appended else 0.0
        if not connections.lock.acquire(timeout=patience):
            return self._sign
        try:
            self._sign = self._make_sign(connections.writer(), self._last_appended)
        except sqlite3.Error as error:
            raise translate(error, self.url) from error
        finally:
            connections.lock.release()
        return self._sign

    def ranking(self, ranking_id: str, *, namespace: str | None = None) -> RankingServed | None:
        """Return a ranking by id."""
        if namespace is None:
            return self._newest("ranking_id = ?", ranking_id)
        return self._newest("ranking_id = ? AND namespace = ?", ranking_id, namespace)

    def latest_ranking(self, query_key: str, *, namespace: str) -> RankingServed | None:
        """Return the newest ranking of a question."""
        return self._newest("query_key = ? AND namespace = ?", query_key, namespace)

    def traced_rankings(self, trace: str, *, namespace: str, limit: int = 100) -> list[RankingServed]:
        """Return the newest rankings with this id; one look into each of four indexes."""
        with self._connections.reading() as connection:
            rows = connection.execute(_TRACED, (*(trace,) * len(TRACE_IDS), namespace, limit)).fetchall()
        return [codec.decode_ranking(StoredRow._make(row)) for row in rows]

    def load_snapshot(self, namespace: str, fold: str) -> Snapshot | None:
        """Return a snapshot."""
        with self._connections.reading() as connection:
            row = connection.execute("SELECT epoch, position, state FROM snapshots WHERE namespace = ? AND fold = ?",
                                     (namespace, fold)).fetchone()
            return None if row is None else Snapshot(*row)

    def save_snapshot(self, namespace: str, fold: str, snapshot: Snapshot) -> None:
        """Keep a snapshot of the current epoch."""
        with self._connections.lock, self._connections.transaction() as connection:
            if read_meta(connection, "epoch") == snapshot.epoch:
                connection.execute("INSERT OR REPLACE INTO snapshots VALUES (?, ?, ?, ?, ?)",
                                   (namespace, fold, snapshot.epoch, snapshot.position, snapshot.state))

    def get_vectors(self, namespace: str, encoder: str, keys: Sequence[str]) -> dict[str, npt.NDArray[np.float16]]:
        """Return the cached vectors among the keys."""
        with self._connections.reading() as connection:
            rows = connection.execute(
                "SELECT key, vector FROM vectors WHERE namespace = ? AND encoder = ? "
                "AND key IN (SELECT value FROM json_each(?))", (namespace, encoder, codec.json_texts(keys))
            ).fetchall()
        return {key: np.frombuffer(stored, codec.HALF).astype(np.float16, copy=False) for key, stored in rows}

    def put_vectors(self, namespace: str, encoder: str, vectors: Sequence[StoredVector], *, at: float,
                    max_rows: int) -> None:
        """Add vectors; the oldest go beyond the bound."""
        rows = [(codec.json_text(stored.document_id), at, codec.to_half(stored.vector), namespace, encoder, stored.key)
                for stored in vectors]
        with self._connections.lock, self._connections.transaction() as connection:
            _put_vectors(connection, rows)
            _drop_oldest_vectors(connection, max_rows)

    def erase(self, what: Erasure) -> Receipt:
        """Erase from the log, the caches and the bytes of the file."""
        erasure.check(what)
        with self._connections.lock:
            with self._connections.transaction() as connection:
                receipt = sqlite_erasure.erase(connection, what)
            self._erasures += receipt != Receipt()
            with self._connections.translating():
                self._empty_write_ahead_log(connection)
                self._sign = self._make_sign(connection, self._last_appended)
        return receipt

    def namespaces(self) -> list[str]:
        """Return the namespaces that have events or cached answers."""
        with self._connections.reading() as connection:
            rows = connection.execute("SELECT namespace FROM events UNION SELECT namespace FROM answer_events "
                                      "UNION SELECT namespace FROM answers ORDER BY 1").fetchall()
        return [name for (name,) in rows]

    def health(self) -> StoreHealth:
        """Return counts, sizes and the verdict of SQLite's own integrity check."""
        with self._connections.reading() as connection:
            findings = [text for (text,) in connection.execute("PRAGMA integrity_check")]
            damaged = _scalar(connection, _COUNT_DAMAGED)
            if damaged:
                findings = [text for text in findings if text != "ok"] + [f"{damaged} events cannot be read"]
            return {
                "kind": "sqlite", "place": self.url, "schema": _scalar(connection, "PRAGMA user_version"),
                "rows": _count_rows(connection), "answers": count_answers(connection),
                "bytes": self._bytes(connection),
                "integrity": "ok" if findings == ["ok"] else "; ".join(findings),
                "journal": _scalar(connection, "PRAGMA journal_mode"), "sqlite": sqlite3.sqlite_version,
            }

    def close(self) -> None:
        """Close all connections."""
        self._finalizer()

    def __repr__(self) -> str:
        return f"SqliteStore({self.url!r})"

    def _make_sign(self, connection: sqlite3.Connection, last: int) -> tuple[int, int, int, int]:
        # the version counts what other connections commit; what this object appends or erases is counted here
        version = connection.execute("PRAGMA data_version").fetchone()[0]
        return version, last, self._erasures, self._connections.opened

    def _newest(self, condition: str, *values: str) -> RankingServed | None:
        query = f"{SELECT} WHERE kind = 'ranking' AND {condition} ORDER BY position DESC LIMIT 1"
        with self._connections.reading() as connection:
            row = connection.execute(query, values).fetchone()
        return None if row is None else codec.decode_ranking(StoredRow._make(row))

    def _empty_write_ahead_log(self, connection: sqlite3.Connection) -> None:
        # older copies of the erased pages are still in there
        busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            _LOG.warning("%s: erased, but a reader still uses the write-ahead log; erased bytes leave it when the "
                         "last process closes the store", self.url)

    def _bytes(self, connection: sqlite3.Connection) -> int:
        if self._path is None:
            return int(_scalar(connection, "PRAGMA page_count") * _scalar(connection, "PRAGMA page_size"))
        files = [self._path, *_side_files(self._path)]
        return sum(file.stat().st_size for file in files if file.exists())


def quarantine(url: str, *, at: float) -> Path:
    """Move a damaged file and its side files aside and return the new place; ``at`` (seconds, UTC) is in the name."""
    path = Path(url.removeprefix("sqlite:///")).expanduser().absolute()
    if not url.startswith("sqlite:///") or not path.is_file():
        raise InvalidInputError(f"only an existing SQLite file can be moved aside, got {url!r}")
    stamp = f"{datetime.fromtimestamp(at, UTC):%Y%m%dT%H%M%SZ}"
    target = _unused(path.with_name(f"{path.name}.quarantined-{stamp}"))
    try:
        for side in _side_files(path):
            if side.exists():
                side.rename(f"{target}{side.name.removeprefix(path.name)}")
        return path.rename(target)
    except OSError as error:
        raise StoreError(f"cannot move {path} to {target}: {error.strerror}") from error


def _unused(target: Path) -> Path:
    number = 1
    candidate = target
    while candidate.exists():
        number += 1
        candidate = target.with_name(f"{target.name}-{number}")
    return candidate


def _side_files(path: Path) -> list[Path]:
    return [path.with_name(path.name + suffix) for suffix in ("-wal", "-shm", "-journal")]


def _encode(event: Event) -> codec.Row:
    codec.check(event)
    return codec.encode_ranking(event) if isinstance(event, RankingServed) else codec.encode_feedback(event)


def _append(connection: sqlite3.Connection, event: Event, row: codec.Row) -> tuple[int, ...]:
    """Return the event's position, after that of the ranking if feedback brought one that was not stored."""
    if isinstance(event, RankingServed):
        found = connection.execute(_FIND_RANKING, (event.ranking_id, event.namespace)).fetchone()
        return (int(found[0]) if found else _insert(connection, row),)
    feedback, ranking = connection.execute(
        _FIND_BOTH, (event.feedback_id, event.namespace, event.ranking_id, event.namespace)
    ).fetchone()
    if feedback is not None:
        return (int(feedback),)
    if ranking is not None:
        return (_insert(connection, row),)
    return _insert(connection, codec.encode_ranking(event.ranking)), _insert(connection, row)


def _insert(connection: sqlite3.Connection, row: codec.Row) -> int:
    return int(connection.execute(_INSERT, row).lastrowid or 0)


def _rankings_before(connection: sqlite3.Connection, rows: list[Any]) -> list[Any]:
    """Return the rows of rankings that feedback among ``rows`` is about and that are not among them."""
    here = {(row[4], row[2]) for row in rows if row[1] == codec.RANKING}
    missing = {row[4] for row in rows if row[1] == codec.FEEDBACK and (row[4], row[2]) not in here}
    if not missing:
        return []
    return connection.execute(
        f"{SELECT} WHERE kind = 'ranking' AND ranking_id IN (SELECT value FROM json_each(?))",
        (codec.json_texts(missing),)
    ).fetchall()


def _decode(rows: list[Any], earlier: list[Any]) -> list[Recorded]:
    rankings = {(row[4], row[2]): codec.decode_ranking(row) for row in earlier}
    recorded = []
    for row in rows:
        if row[1] == codec.RANKING:
            rankings[row[4], row[2]] = ranking = codec.decode_ranking(row)
            recorded.append(Recorded(row[0], ranking))
        else:
            recorded.append(Recorded(row[0], codec.decode_feedback(row, rankings[row[4], row[2]])))
    return recorded


def _put_vectors(connection: sqlite3.Connection, rows: list[tuple[Any, ...]]) -> None:
    before = connection.total_changes
    connection.executemany("INSERT INTO vectors (document_id, at, vector, namespace, encoder, key) "
                           "VALUES (json_extract(?, '$'), ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", rows)
    added = connection.total_changes - before
    if added < len(rows):
        # known ones become young again
        connection.executemany(
            "UPDATE vectors SET document_id = coalesce(json_extract(?, '$'), document_id), at = ?, vector = ? "
            "WHERE namespace = ? AND encoder = ? AND key = ?", rows)
    add_to_meta(connection, "vectors", added)


def _drop_oldest_vectors(connection: sqlite3.Connection, max_rows: int) -> None:
    excess = read_meta(connection, "vectors") - max_rows
    if excess > 0:
        dropped = connection.execute("DELETE FROM vectors WHERE rowid IN "
                                     "(SELECT rowid FROM vectors ORDER BY at, rowid LIMIT ?)", (excess,)).rowcount
        add_to_meta(connection, "vectors", -dropped)


def _count_rows(connection: sqlite3.Connection) -> dict[str, int]:
    rankings, feedback, vectors, snapshots = connection.execute(
        "SELECT (SELECT count(*) FROM events WHERE kind = 'ranking'), "
        "(SELECT count(*) FROM events WHERE kind = 'feedback'), "
        "(SELECT count(*) FROM vectors), (SELECT count(*) FROM snapshots)"
    ).fetchone()
    return {"rankings": rankings, "feedback": feedback, "vectors": vectors, "snapshots": snapshots}


def _scalar(connection: sqlite3.Connection, query: str) -> Any:
    return connection.execute(query).fetchone()[0]
