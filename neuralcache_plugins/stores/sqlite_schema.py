"""What a SQLite store looks like inside, and how an older file becomes a current one.

The views ``rankings``, ``shown_documents``, ``feedback``, ``cache_hits``, ``cache_misses`` and ``cache_judgements`` are
for people and their SQL tools; their columns are part of the public interface. Times in them are UTC as ISO 8601 text.
``shown_documents.rank`` starts at 1, ``shown_documents.position`` is the index in the list that the caller passed and
starts at 0.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Sequence
from typing import TypeAlias

from neuralcache_plugins.contracts import SIGNALS
from neuralcache_plugins.errors import SchemaVersionError, StoreCorruptError

APPLICATION_ID = 0x4E435052
"""Marks a SQLite file as ours ("NCPR" in its header)."""

Migration: TypeAlias = Sequence[str]
"""The statements that lead from one schema version to the next, run in one transaction."""

_TABLES = (
    f"PRAGMA application_id = {APPLICATION_ID}",
    """CREATE TABLE events (
        position INTEGER PRIMARY KEY AUTOINCREMENT,
        kind TEXT NOT NULL CHECK (kind IN ('ranking', 'feedback')),
        namespace TEXT NOT NULL,
        at REAL NOT NULL,
        ranking_id TEXT NOT NULL,
        session TEXT,
        query_key TEXT,
        feedback_id TEXT,
        source TEXT,
        run_id TEXT,
        parent_run_id TEXT,
        trace_id TEXT,
        span_id TEXT,
        body TEXT NOT NULL,
        vector BLOB
    )""",
    # ids belong to their namespace: two tenants may use the same one
    "CREATE UNIQUE INDEX events_by_ranking ON events (ranking_id, namespace) WHERE kind = 'ranking'",
    "CREATE UNIQUE INDEX events_by_feedback ON events (feedback_id, namespace) WHERE kind = 'feedback'",
    "CREATE INDEX events_by_question ON events (namespace, query_key) WHERE kind = 'ranking'",
    "CREATE INDEX events_by_namespace ON events (namespace, position)",
    "CREATE INDEX events_by_session ON events (session, namespace) WHERE session IS NOT NULL",
    """CREATE TABLE snapshots (
        namespace TEXT NOT NULL,
        fold TEXT NOT NULL,
        epoch INTEGER NOT NULL,
        position INTEGER NOT NULL,
        state BLOB NOT NULL,
        PRIMARY KEY (namespace, fold)
    )""",
    """CREATE TABLE vectors (
        namespace TEXT NOT NULL,
        encoder TEXT NOT NULL,
        key TEXT NOT NULL,
        document_id TEXT,
        at REAL NOT NULL,
        vector BLOB NOT NULL,
        PRIMARY KEY (namespace, encoder, key)
    )""",
    "CREATE INDEX vectors_by_age ON vectors (at)",
    "CREATE INDEX vectors_by_document ON vectors (document_id) WHERE document_id IS NOT NULL",
    # counting 200,000 rows takes longer than adding a hundred, so their number is kept
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID",
    "INSERT INTO meta VALUES ('epoch', 1), ('vectors', 0)",
)

_UTC = "strftime('%Y-%m-%dT%H:%M:%fZ', {}, 'unixepoch')"

_SIGNAL_COLUMNS = ",\n        ".join(
    f"json_extract(e.body, '$.signals.{name}[' || d.key || ']') AS {name}" for name in SIGNALS
)

_VIEWS = (
    f"""CREATE VIEW rankings AS SELECT
        e.ranking_id, e.namespace, {_UTC.format("e.at")} AS served_at, e.session, e.query_key,
        json_extract(e.body, '$.query_text') AS query_text,
        json_extract(e.body, '$.candidates') AS candidates,
        json_array_length(e.body, '$.documents') AS shown,
        json_extract(e.body, '$.trust') AS trust,
        coalesce(json_extract(e.body, '$.degraded'), '[]') AS degraded,
        json_extract(e.body, '$.encoder') AS encoder,
        e.run_id, e.parent_run_id, e.trace_id, e.span_id, e.position AS log_position
    FROM events e WHERE e.kind = 'ranking'""",
    f"""CREATE VIEW shown_documents AS SELECT
        e.ranking_id, e.namespace, {_UTC.format("e.at")} AS served_at,
        d.key + 1 AS rank,
        json_extract(e.body, '$.positions[' || d.key || ']') AS position,
        d.value AS document_id,
        json_extract(e.body, '$.scores[' || d.key || ']') AS score,
        json_extract(e.body, '$.propensities[' || d.key || ']') AS propensity,
        {_SIGNAL_COLUMNS},
        json_extract(e.body, '$.document_texts[' || d.key || ']') AS document_text
    FROM events e, json_each(e.body, '$.documents') d WHERE e.kind = 'ranking'""",
    f"""CREATE VIEW feedback AS SELECT
        e.feedback_id, e.ranking_id, e.namespace, {_UTC.format("e.at")} AS given_at, e.source,
        json_extract(r.value, '$[0]') AS document_id,
        json_extract(r.value, '$[1]') AS reward,
        e.position AS log_position
    FROM events e, json_each(e.body, '$.rewards') r WHERE e.kind = 'feedback'""",
)

_COUNTED = "UPDATE meta SET value = value + {} WHERE name = '{}'"

_ANSWERS = (
    """CREATE TABLE answers (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        namespace TEXT NOT NULL,
        scope TEXT NOT NULL,
        question_key TEXT NOT NULL,
        entry_id TEXT NOT NULL,
        created_at REAL NOT NULL,
        expires_at REAL,
        bytes INTEGER NOT NULL,
        hits INTEGER NOT NULL,
        cost REAL NOT NULL,
        seconds REAL NOT NULL
    )""",
    "CREATE UNIQUE INDEX answers_by_question ON answers (namespace, scope, question_key)",
    "CREATE UNIQUE INDEX answers_by_entry ON answers (entry_id, namespace)",
    "CREATE INDEX answers_by_number ON answers (namespace, number)",
    "CREATE INDEX answers_by_end ON answers (expires_at) WHERE expires_at IS NOT NULL",
    # apart from the narrow rows above, which are sorted when room must be made
    """CREATE TABLE answer_bodies (
        number INTEGER PRIMARY KEY,
        question BLOB NOT NULL,
        kind TEXT NOT NULL,
        payload BLOB NOT NULL,
        digest TEXT NOT NULL,
        encoder TEXT NOT NULL,
        vector BLOB,
        documents TEXT NOT NULL
    )""",
    """CREATE TABLE answer_documents (
        document_id TEXT NOT NULL,
        number INTEGER NOT NULL,
        version TEXT NOT NULL,
        PRIMARY KEY (document_id, number, version)
    ) WITHOUT ROWID""",
    "CREATE INDEX answer_documents_by_answer ON answer_documents (number)",
    # what was removed last of each document, scope and namespace: who began before must not put it back
    """CREATE TABLE answer_barriers (
        namespace TEXT NOT NULL,
        kind TEXT NOT NULL CHECK (kind IN ('document', 'scope', 'all')),
        name TEXT NOT NULL,
        version TEXT,
        mark INTEGER NOT NULL,
        PRIMARY KEY (namespace, kind, name)
    ) WITHOUT ROWID""",
    # apart from the events of rankings: who follows those need not read past every hit of the cache
    """CREATE TABLE answer_events (
        position INTEGER PRIMARY KEY AUTOINCREMENT,
        kind TEXT NOT NULL CHECK (kind IN ('cached', 'served', 'judged')),
        namespace TEXT NOT NULL,
        at REAL NOT NULL,
        event_id TEXT NOT NULL,
        entry_id TEXT NOT NULL,
        scope TEXT NOT NULL,
        body TEXT NOT NULL
    )""",
    "CREATE UNIQUE INDEX answer_events_by_id ON answer_events (event_id, kind, namespace)",
    "CREATE INDEX answer_events_by_entry ON answer_events (entry_id, namespace)",
    "CREATE INDEX answer_events_by_kind ON answer_events (namespace, kind, position)",
    "CREATE TABLE leases (name TEXT PRIMARY KEY, owner TEXT NOT NULL, expires_at REAL NOT NULL, failure TEXT) "
    "WITHOUT ROWID",
    "INSERT INTO meta VALUES ('answers', 0), ('answer_bytes', 0), ('answer_changes', 0), ('answers_erased', 0)",
    f"""CREATE TRIGGER answer_added AFTER INSERT ON answers BEGIN
        {_COUNTED.format(1, "answers")};
        {_COUNTED.format("new.bytes", "answer_bytes")};
        {_COUNTED.format(1, "answer_changes")};
    END""",
    f"""CREATE TRIGGER answer_removed AFTER DELETE ON answers BEGIN
        DELETE FROM answer_bodies WHERE number = old.number;
        DELETE FROM answer_documents WHERE number = old.number;
        {_COUNTED.format(-1, "answers")};
        {_COUNTED.format("-old.bytes", "answer_bytes")};
        {_COUNTED.format(1, "answer_changes")};
    END""",
)

_MISSES = (
    # a CHECK cannot be changed, so the table is made anew; positions and the counter behind them stay
    "DROP INDEX answer_events_by_id", "DROP INDEX answer_events_by_entry", "DROP INDEX answer_events_by_kind",
    "ALTER TABLE answer_events RENAME TO answer_events_before",
    """CREATE TABLE answer_events (
        position INTEGER PRIMARY KEY AUTOINCREMENT,
        kind TEXT NOT NULL CHECK (kind IN ('cached', 'served', 'judged', 'missed')),
        namespace TEXT NOT NULL,
        at REAL NOT NULL,
        event_id TEXT NOT NULL,
        entry_id TEXT NOT NULL,
        scope TEXT NOT NULL,
        body TEXT NOT NULL
    )""",
    "INSERT INTO answer_events SELECT * FROM answer_events_before",
    "DELETE FROM sqlite_sequence WHERE name = 'answer_events'",
    "INSERT INTO sqlite_sequence SELECT 'answer_events', seq FROM sqlite_sequence WHERE name = 'answer_events_before'",
    "DROP TABLE answer_events_before",
    "CREATE UNIQUE INDEX answer_events_by_id ON answer_events (event_id, kind, namespace)",
    "CREATE INDEX answer_events_by_entry ON answer_events (entry_id, namespace)",
    "CREATE INDEX answer_events_by_kind ON answer_events (namespace, kind, position)",
    f"""CREATE VIEW cache_hits AS SELECT
        e.event_id AS hit_id, e.namespace, {_UTC.format("e.at")} AS served_at, json_extract(e.body, '$.kind') AS kind,
        json_extract(e.body, '$.score') AS score, coalesce(json_extract(e.body, '$.cost'), 0.0) AS cost_saved,
        coalesce(json_extract(e.body, '$.seconds'), 0.0) AS seconds_saved, e.entry_id, e.scope,
        e.position AS log_position
    FROM answer_events e WHERE e.kind = 'served'""",
    f"""CREATE VIEW cache_misses AS SELECT
        e.event_id AS miss_id, e.namespace, {_UTC.format("e.at")} AS missed_at,
        json_extract(e.body, '$.reason') AS reason, e.scope, e.position AS log_position
    FROM answer_events e WHERE e.kind = 'missed'""",
    f"""CREATE VIEW cache_judgements AS SELECT
        e.event_id AS judgement_id, e.namespace, {_UTC.format("e.at")} AS judged_at,
        json_extract(e.body, '$.source') AS source, json_extract(e.body, '$.correct') AS correct,
        json_extract(e.body, '$.score') AS score, json_extract(e.body, '$.hit_id') AS hit_id, e.entry_id, e.scope,
        e.position AS log_position
    FROM answer_events e WHERE e.kind = 'judged' AND json_extract(e.body, '$.source') <> 'calibrated'""",
)

TRACE_IDS = ("run_id", "parent_run_id", "trace_id", "span_id")
"""Columns by which others know a ranking."""

# partial: rankings outside of any trace cost nothing
_TRACES = tuple(f"CREATE INDEX events_by_{name} ON events ({name}) WHERE {name} IS NOT NULL" for name in TRACE_IDS)

MIGRATIONS: tuple[Migration, ...] = ((*_TABLES, *_VIEWS), _ANSWERS, _MISSES, _TRACES)
"""``MIGRATIONS[n]`` leads from schema version ``n`` to ``n + 1``. Never edited once released, only added to."""


def check_file(connection: sqlite3.Connection, migrations: Sequence[Migration], *, place: str) -> None:
    """Refuse a file of another application and one from a newer release, before anything is written."""
    # tables first: another process may be making the file, and it signs in the transaction that makes the tables
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    if tables and application != APPLICATION_ID:
        raise StoreCorruptError(
            f"{place} is a SQLite file of another application and was left untouched; give this store a file of its own"
        )
    version = _version(connection)
    if version > len(migrations):
        raise SchemaVersionError(
            f"{place} has schema version {version}, this release reads up to {len(migrations)}; "
            "upgrade with: pip install --upgrade neuralcache-plugins"
        )


def migrate(connection: sqlite3.Connection, migrations: Sequence[Migration]) -> None:
    """Bring an empty or older file to the newest version, one transaction for each step."""
    for version in range(_version(connection), len(migrations)):
        _migrate(connection, migrations[version], version)
    _ensure_hash_key(connection)


def read_meta(connection: sqlite3.Connection, name: str) -> int:
    """Return one of the store's own numbers."""
    value: int = connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()[0]
    return value


def add_to_meta(connection: sqlite3.Connection, name: str, amount: int) -> None:
    """Change one of the store's own numbers."""
    connection.execute("UPDATE meta SET value = value + ? WHERE name = ?", (amount, name))


def _version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


def _migrate(connection: sqlite3.Connection, migration: Migration, version: int) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        # another process may have been faster while this one waited
        if _version(connection) == version:
            for statement in migration:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {version + 1}")
        connection.execute("COMMIT")
    except BaseException:
        roll_back(connection)
        raise


def roll_back(connection: sqlite3.Connection) -> None:
    """Undo the open transaction, if any, without hiding the error that made it necessary."""
    if connection.in_transaction:
        try:
            connection.execute("ROLLBACK")
        except sqlite3.Error:
            # SQLite rolls back by itself when the connection goes; the first error is the one to see
            return


def _ensure_hash_key(connection: sqlite3.Connection) -> None:
    if connection.execute("SELECT 1 FROM meta WHERE name = 'hash_key'").fetchone() is None:
        connection.execute("INSERT INTO meta VALUES ('hash_key', ?) ON CONFLICT DO NOTHING", (secrets.token_bytes(32),))
