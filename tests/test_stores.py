"""Stores: one conformance suite for all, and what is particular to SQLite files and URLs."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import pathlib
import re
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neuralcache_plugins import open_store
from neuralcache_plugins.contracts import (
    SIGNALS,
    AnswerBounds,
    AnswerMissed,
    Erasure,
    RecordedAnswer,
    Removal,
    Snapshot,
    StoredVector,
    session_parts,
)
from neuralcache_plugins.errors import (
    InvalidInputError,
    SchemaVersionError,
    StoreBusyError,
    StoreClosedError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
)
from neuralcache_plugins.stores import codec, mask, sqlite_answers, sqlite_connections
from neuralcache_plugins.stores import sqlite as sqlite_store
from neuralcache_plugins.stores.memory import MemoryStore
from neuralcache_plugins.stores.sqlite import SqliteStore, quarantine
from neuralcache_plugins.stores.sqlite_connections import translate
from neuralcache_plugins.stores.sqlite_schema import MIGRATIONS
from neuralcache_plugins.testing import (
    AnswerStoreConformance,
    CacheStore,
    StoreConformance,
    assert_same_event,
    make_answer,
    make_feedback,
    make_judged,
    make_ranking,
    make_served,
    read_all,
)
from neuralcache_plugins.testing.answers import NO_BOUNDS, assert_same_answer

posix_only = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


class TestMemoryStore(StoreConformance, AnswerStoreConformance):
    @pytest.fixture
    def store(self):
        with closing(open_store("memory://")) as store:
            yield store


class TestSqliteMemory(StoreConformance, AnswerStoreConformance):
    @pytest.fixture
    def store(self):
        with closing(open_store("sqlite:///:memory:")) as store:
            yield store


class TestSqliteFile(StoreConformance, AnswerStoreConformance):
    @pytest.fixture
    def url(self, tmp_path):
        return f"sqlite:///{tmp_path / 'telemetry.db'}"

    @pytest.fixture
    def store(self, url):
        with closing(open_store(url)) as store:
            yield store

    @pytest.fixture
    def reopen(self, url) -> Callable[[], CacheStore]:
        return lambda: open_store(url)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "telemetry.db"


@pytest.fixture
def store(path) -> Iterator[SqliteStore]:
    with closing(SqliteStore(path)) as store:
        yield store


def sql(path, query, *values):
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query, values).fetchall()


@pytest.fixture
def statements(store):
    """Every SQL statement that the store's connections run from now on."""
    seen: list[str] = []
    store._connections.writer().set_trace_callback(seen.append)
    connect = store._connections._connect

    def traced():
        connection = connect()
        connection.set_trace_callback(seen.append)
        return connection

    store._connections._connect = traced
    store.read()  # the reading connection is open from here on
    seen.clear()
    return seen


# files


@posix_only
def test_a_new_file_belongs_to_its_owner_alone(tmp_path):
    """The folder that is made has mode 0700, the file and its side files have 0600, whatever the umask."""
    before = os.umask(0)
    try:
        with closing(SqliteStore(tmp_path / "new" / "telemetry.db")) as store:
            store.append([make_ranking()])
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "new").iterdir()}
    finally:
        os.umask(before)

    assert modes == {"telemetry.db": 0o600, "telemetry.db-wal": 0o600, "telemetry.db-shm": 0o600}
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_the_file_is_in_wal_mode_and_says_whose_it_is(store, path):
    """Readers do not wait for the writer, and tools can tell the file apart."""
    assert store.health()["journal"] == "wal"
    assert sql(path, "PRAGMA application_id") == [(0x4E435052,)]


@pytest.mark.parametrize(("synchronous", "level"), [("normal", 1), ("full", 2)])
def test_synchronous_reaches_sqlite(path, synchronous, level):
    """The setting decides whether a commit waits for the disk."""
    with closing(SqliteStore(path, synchronous=synchronous)) as store:
        assert store._connections.writer().execute("PRAGMA synchronous").fetchone() == (level,)


def test_a_relative_path_stays_where_it_was(tmp_path, monkeypatch):
    """A store that was opened by a relative URL does not follow the current directory."""
    monkeypatch.chdir(tmp_path)
    with closing(open_store("sqlite:///telemetry.db")) as store:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        store.append([make_ranking()])
        assert len(store.read()) == 1
        assert store.url == f"sqlite:///{(tmp_path / 'telemetry.db').as_posix()}"
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_path_may_hold_any_character(tmp_path):
    """Question marks, hashes, percent signs and blanks are part of the name."""
    place = tmp_path / "a b%20?c=#d é"
    with closing(open_store(f"sqlite:///{place}/t?.db")) as store:
        store.append([make_ranking()])
        store.read()
    assert [file.name for file in place.iterdir()] == ["t?.db"]


def test_a_file_that_vanished_is_not_made_again_by_a_reader(path):
    """Reading never creates a file."""
    with closing(SqliteStore(path)) as store:
        path.unlink()
        with pytest.raises(StoreFullError, match="unable to open database file"):
            store.read()
        assert not path.exists()


# trouble


def test_a_place_that_cannot_be_written_to(tmp_path):
    """A folder that cannot be made is a StoreFullError that says where."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreFullError, match=r"^cannot create .*file/t\.db: .*; make room, or choose a place"):
        SqliteStore(tmp_path / "file" / "t.db")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(tmp_path):
    """A folder without write permission is a StoreFullError."""
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StoreFullError):
            SqliteStore(tmp_path / "t.db")
    finally:
        tmp_path.chmod(0o700)


def test_a_read_only_file(store):
    """Writing where SQLite may not write is a StoreFullError and leaves nothing half-done."""
    store._connections.writer().execute("PRAGMA query_only = ON")
    with pytest.raises(StoreFullError, match="attempt to write a readonly database"):
        store.append([make_ranking()])
    store._connections.writer().execute("PRAGMA query_only = OFF")
    assert store.append([make_ranking()]).positions == (1,)


def test_a_full_disk(store):
    """No room left is a StoreFullError, and the store works again when there is room."""
    writer = store._connections.writer()
    pages = writer.execute("PRAGMA page_count").fetchone()[0]
    writer.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreFullError, match="database or disk is full"):
        store.append([make_ranking(f"r{number}", width=512) for number in range(50)])
    writer.execute("PRAGMA max_page_count = 1000000")
    assert store.read() == []
    store.append([make_ranking()])


def test_a_locked_file(path):
    """A writer that waits too long raises StoreBusyError; reading and signs go on."""
    with closing(SqliteStore(path, busy_timeout_seconds=0.05)) as store, closing(sqlite3.connect(path)) as other:
        sign = store.append([make_ranking("r1")]).sign
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreBusyError, match="database is locked; another writer holds it"):
            store.append([make_ranking("r2")])
        assert len(store.read()) == 1
        assert store.sign() == sign
        other.rollback()
        store.append([make_ranking("r2")])


def test_a_sign_does_not_wait_for_a_writer_of_this_object(path):
    """While another thread of this process writes, the last sign is returned at once."""
    with closing(SqliteStore(path, busy_timeout_seconds=2.0)) as store, closing(sqlite3.connect(path)) as other:
        sign = store.append([make_ranking("r1")]).sign
        other.execute("BEGIN IMMEDIATE")
        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(store.append, [make_ranking("r2")])
            while not store._connections.lock.locked():
                time.sleep(0.001)
            assert store.sign() == sign
            other.rollback()
            assert writing.result().sign == store.sign() != sign


@pytest.mark.parametrize("content", [b"not a database at all, but long enough to look at" * 50, b"x"])
def test_a_file_that_is_no_database(path, content):
    """It is left untouched and the message says how to go on."""
    path.write_bytes(content)
    with pytest.raises(StoreCorruptError, match=r"move it aside .* python -m neuralcache_plugins doctor --quarantine$"):
        SqliteStore(path)
    assert path.read_bytes() == content


def test_a_damaged_file(path):
    """Damage inside the file is a StoreCorruptError when it is met."""
    with closing(SqliteStore(path)) as store:
        store.append([make_feedback(make_ranking(f"r{number}"), feedback_id=f"f{number}") for number in range(200)])
    content = bytearray(path.read_bytes())
    content[3 * 4096:-4096] = b"\xa5" * (len(content) - 4 * 4096)
    path.write_bytes(content)

    with pytest.raises(StoreCorruptError, match="doctor --quarantine"), closing(SqliteStore(path)) as store:
        read_all(store)


def test_a_database_of_another_application(path):
    """A SQLite file with foreign tables is refused and left untouched."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    with pytest.raises(StoreCorruptError, match="is a SQLite file of another application"):
        SqliteStore(path)
    assert sql(path, "SELECT name FROM sqlite_master") == [("theirs",)]
    assert sql(path, "PRAGMA journal_mode") == [("delete",)]


def test_quarantine_moves_the_file_and_its_side_files_aside(path):
    """The damaged files keep their content under a new name, and a fresh store can be opened."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).write_bytes(suffix.encode() or b"damaged")
    moved = quarantine(f"sqlite:///{path}", at=1_795_304_887.9)

    assert moved == path.with_name("telemetry.db.quarantined-20261121T234807Z")
    assert moved.read_bytes() == b"damaged"
    assert pathlib.Path(f"{moved}-wal").read_bytes() == b"-wal"
    SqliteStore(path).close()
    assert quarantine(f"sqlite:///{path}", at=1_795_304_887.9) == moved.with_name(f"{moved.name}-2")


@pytest.mark.parametrize("url", ["sqlite:///:memory:", "memory://", "sqlite:////nowhere/at/all.db"])
def test_quarantine_needs_a_file(url):
    """Anything else is refused."""
    with pytest.raises(InvalidInputError, match=r"^only an existing SQLite file can be moved aside"):
        quarantine(url, at=0.0)


def sqlite_error_codes():
    names = [name for name in dir(sqlite3) if re.fullmatch(r"SQLITE_[A-Z]+(_[A-Z0-9]+)*", name)]
    primary = {"PERM", "ABORT", "BUSY", "LOCKED", "NOMEM", "READONLY", "INTERRUPT", "IOERR", "CORRUPT", "NOTFOUND",
               "FULL", "CANTOPEN", "PROTOCOL", "EMPTY", "SCHEMA", "TOOBIG", "CONSTRAINT", "MISMATCH", "MISUSE",
               "NOLFS", "AUTH", "FORMAT", "RANGE", "NOTADB", "ERROR", "INTERNAL"}
    return [name for name in names if name.split("_")[1] in primary]


EXPECTED = {"BUSY": StoreBusyError, "LOCKED": StoreBusyError, "FULL": StoreFullError, "READONLY": StoreFullError,
            "CANTOPEN": StoreFullError, "PERM": StoreFullError, "CORRUPT": StoreCorruptError,
            "NOTADB": StoreCorruptError}


@pytest.mark.parametrize("name", sqlite_error_codes())
def test_every_error_code_of_sqlite_is_translated(name):
    """Extended codes count as their primary code."""
    error = sqlite3.OperationalError("trouble")
    error.sqlite_errorcode = getattr(sqlite3, name)
    assert type(translate(error, "here")) is EXPECTED.get(name.split("_")[1], StoreError)


def error_classes(root=sqlite3.Error):
    return [root, *(each for child in root.__subclasses__() for each in error_classes(child))]


@pytest.mark.parametrize("kind", error_classes())
def test_every_error_class_of_sqlite_is_translated(store, kind):
    """No driver error leaves a store, from reading, writing or asking for the sign."""
    class Broken:
        def execute(self, *_):
            raise kind("trouble")

        in_transaction = False

        def close(self):
            return None

    store._connections.writer().close()
    store._connections._writer = Broken()
    store._connections._idle.clear()
    store._connections._open_reader = Broken
    for use in (store.read, store.sign, store.head, lambda: store.append([make_ranking()]),
                lambda: store.erase(Erasure(namespace="x"))):
        with pytest.raises(StoreError, match="trouble") as caught:
            use()
        assert isinstance(caught.value.__cause__, kind)


def test_a_connection_that_was_closed_is_a_closed_store(store):
    """SQLite's own complaint about a closed connection is a StoreClosedError."""
    store._connections.writer().close()
    with pytest.raises(StoreClosedError, match=r"^the store sqlite:///.* is closed$"):
        store.append([make_ranking()])
    store._connections._writer = None


def test_the_first_error_survives_a_failing_rollback(store):
    """What went wrong is reported, not what went wrong while cleaning up."""
    class Broken:
        in_transaction = True

        def execute(self, statement, *_):
            if statement != "BEGIN IMMEDIATE":
                raise sqlite3.OperationalError(f"no {statement[:8]}")

    real, store._connections._writer = store._connections.writer(), Broken()
    with pytest.raises(StoreError, match="no SELECT"):
        store.append([make_ranking()])
    store._connections._writer = real


@pytest.mark.parametrize("store_kind", [MemoryStore, SqliteStore])
def test_document_ids_need_not_be_unicode(store_kind):
    """Names of files that are not UTF-8 (lone surrogates) survive, and can be erased."""
    strange = "caf\udce9.txt"
    with closing(store_kind()) as store:
        feedback = make_feedback(make_ranking(documents=(strange, "b")))
        store.append([feedback])
        store.put_vectors("default", "e", [StoredVector("k", np.ones(2, np.float16), strange)], at=1.0, max_rows=9)
        assert_same_event(feedback, store.read()[1].event)
        receipt = store.erase(Erasure(document_ids=(strange,)))
        assert (receipt.rankings, receipt.feedback, receipt.vectors) == (1, 1, 1)


def test_other_text_that_is_not_unicode_is_refused(store):
    """A namespace is a column, and SQLite keeps Unicode only."""
    with pytest.raises(InvalidInputError, match="text that is not Unicode cannot be stored"):
        store.append([make_ranking("r1"), make_ranking("r2", namespace="\udce9")])
    with pytest.raises(InvalidInputError, match="text that is not Unicode cannot be stored"):
        store.ranking("\udce9")
    assert store.read() == []


def test_sequences_of_different_lengths_are_refused(store):
    """A ranking whose lists do not match its documents cannot be stored."""
    with pytest.raises(InvalidInputError, match=r"^ranking 'ranking-1' has sequences of other lengths than its 3"):
        store.append([make_ranking(scores=(0.5,))])


@pytest.mark.parametrize("store_kind", [MemoryStore, SqliteStore])
def test_numbers_that_are_not_finite_survive(store_kind):
    """NaN stays NaN and infinities keep their sign, so that a strange signal does not stop the log."""
    ranking = make_ranking(scores=(float("nan"), 0.5, 0.25), cold=(-0.5, float("-inf"), float("inf")))
    with closing(store_kind()) as store:
        store.append([ranking])
        event = store.read()[0].event
    assert np.array_equal(event.scores, ranking.scores, equal_nan=True)
    assert event.cold == ranking.cold


# schema


def old_and_new_migrations():
    """Return the way to a file without a cache, and to today's."""
    return MIGRATIONS[:1], MIGRATIONS[:2]


def test_an_older_file_is_brought_forward(path):
    """Opening with a newer release runs the missing migrations and keeps the data."""
    old, new = old_and_new_migrations()
    with closing(SqliteStore(path, migrations=old)) as store:
        store.append([make_feedback()])
        key = store.hash_key()
        before = [entry.position for entry in store.read()]
    with closing(SqliteStore(path, migrations=new)) as store:
        assert [entry.position for entry in store.read()] == before
        assert store.health()["schema"] == 2
        assert store.hash_key() == key
    with closing(SqliteStore(path)) as store:
        store.put_answers([make_answer()], bounds=NO_BOUNDS)
    assert sql(path, "SELECT count(*) FROM answers") == [(1,)]


def test_events_about_answers_move_to_the_newest_schema_with_their_positions(path):
    """Schema 3 makes their table anew; what is stored then goes on behind what was, erased or not."""
    with closing(SqliteStore(path, migrations=MIGRATIONS[:2])) as store:
        store.put_answers([make_answer(), make_answer("why", namespace="y")], bounds=NO_BOUNDS)
        store.record_answers([make_served(make_answer())])
        store.erase(Erasure(namespace="default"))
        before = store.read_answer_events()
    with closing(SqliteStore(path)) as store:
        assert store.read_answer_events() == before
        (position,) = store.record_answers([AnswerMissed("m", "y", 1.0, "s", "expired")])
        assert position == 4
        assert store.health()["integrity"] == "ok"
    assert sql(path, "SELECT reason, namespace FROM cache_misses") == [("expired", "y")]
    assert sql(path, "SELECT name FROM sqlite_master WHERE name LIKE '%before%'") == []


def test_people_ask_the_cache_with_sql(path):
    """The views have one row for each hit, miss and judgement."""
    answer = make_answer()
    with closing(SqliteStore(path)) as store:
        store.put_answers([answer], bounds=NO_BOUNDS)
        store.record_answers([
            make_served(answer, cost=2.0, seconds=3.0), make_judged(answer, correct=False),
            AnswerMissed("m", "default", 1_800_000_000.0, "s", "expired"),
            make_judged(answer, "end", source="calibrated")])

    assert sql(path, "SELECT hit_id, kind, score, cost_saved, seconds_saved FROM cache_hits") == [
        ("hit-1", "semantic", 0.75, 2.0, 3.0)]
    assert sql(path, "SELECT reason, missed_at FROM cache_misses") == [("expired", "2027-01-15T08:00:00.000Z")]
    assert sql(path, "SELECT source, correct, hit_id FROM cache_judgements") == [("audit", 0, "hit-1")]


def test_a_file_without_indexes_of_traces_gets_them(path):
    with closing(SqliteStore(path, migrations=MIGRATIONS[:3])) as store:
        store.append([make_ranking(trace_id="t")])
    with closing(SqliteStore(path)) as store:
        assert [one.ranking_id for one in store.traced_rankings("t", namespace="default")] == ["ranking-1"]
        assert store.health()["schema"] == 4


def test_rankings_of_a_trace_and_of_a_session_are_found_without_reading_the_log(path):
    with closing(SqliteStore(path)) as store:
        store.append([make_ranking(trace_id="t")])
    plans = [
        sql(path, f"EXPLAIN QUERY PLAN {sqlite_store._TRACED}", *("t",) * 4, "default", 9),
        sql(path, "EXPLAIN QUERY PLAN SELECT 1 FROM events r "
                  "WHERE (r.session = ? OR (r.session > ? AND r.session < ?))", "s", *session_parts("s")),
    ]

    assert [step for plan in plans for *_, step in plan if step.startswith("SCAN")] == []


def test_an_empty_file_is_a_store_to_be(path):
    """A file of version 0, made by somebody else, is filled."""
    path.touch()
    with closing(SqliteStore(path)) as store:
        store.append([make_ranking()])


def test_a_migration_that_fails_leaves_the_old_file(path):
    """Each migration is one transaction: its first statement goes when its second fails."""
    old, new = old_and_new_migrations()
    SqliteStore(path, migrations=old).close()
    broken = (*old, (*new[1], "SELECT * FROM nowhere"))
    with pytest.raises(StoreError, match="no such table: nowhere"):
        SqliteStore(path, migrations=broken)

    assert sql(path, "PRAGMA user_version") == [(1,)]
    assert sql(path, "SELECT * FROM sqlite_master WHERE name LIKE 'answer%'") == []
    SqliteStore(path, migrations=new).close()


def test_a_newer_file_is_refused(path):
    """The message says which version came, which is known, and what to do; the file is untouched."""
    old, new = old_and_new_migrations()
    SqliteStore(path, migrations=new).close()
    with pytest.raises(SchemaVersionError, match=r"has schema version 2, this release reads up to 1; upgrade with: "
                                                 r"pip install --upgrade neuralcache-plugins$"):
        SqliteStore(path, migrations=old)
    assert sql(path, "PRAGMA user_version") == [(2,)]


def test_many_open_a_new_file_at_once(path):
    """Threads that race for the first migration all get a working store with one key."""
    with ThreadPoolExecutor(8) as pool:
        stores = list(pool.map(lambda _: SqliteStore(path), range(8)))
    assert len({store.hash_key() for store in stores}) == 1
    for store in stores:
        store.close()


def test_many_processes_open_a_new_file_at_once(path):
    """Processes that race for the first migration all get a working store with one key."""
    code = ("import sys; from neuralcache_plugins.stores.sqlite import SqliteStore\n"
            "store = SqliteStore(sys.argv[1]); print(store.hash_key().hex()); store.close()")
    processes = [subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) for _ in range(4)]
    keys = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert len(set(keys)) == 1


# SQL


def test_the_views_answer_plain_sql(store, path):
    """Rankings, shown documents and feedback can be read with any SQLite tool, times as UTC text."""
    ranking = make_ranking("r'1", at=1_795_304_887.123, documents=("a", "ü"), positions=(7, 0), session="s",
                           run_id="run", trace_id="trace", query_text="why?", degraded=("encoder",), trust=0.5,
                           document_texts=("A", "Ü"), propensities=(1.0, 0.25), width=None)
    store.append([make_feedback(ranking, feedback_id="f", at=1_795_304_888.0, rewards=(("ü", 1.0), ("a", -0.5)))])

    assert sql(path, "SELECT ranking_id, namespace, served_at, session, query_text, candidates, shown, trust, degraded,"
                     " run_id, parent_run_id, trace_id, span_id, typeof(ranking_id) FROM rankings") == [
        ("r'1", "default", "2026-11-21T23:48:07.123Z", "s", "why?", 7, 2, 0.5, '["encoder"]', "run", None, "trace",
         None, "text")]
    assert sql(path, "SELECT ranking_id, rank, position, document_id, round(score, 3), propensity, document_text,"
                     " typeof(ranking_id) FROM shown_documents ORDER BY rank") == [
        ("r'1", 1, 7, "a", 0.5, 1, "A", "text"), ("r'1", 2, 0, "ü", 0.333, 0.25, "Ü", "text")]
    signals = sql(path, f"SELECT {', '.join(SIGNALS)} FROM shown_documents ORDER BY rank")
    assert signals[1] == pytest.approx([ranking.signals[name][1] for name in SIGNALS], rel=1e-5)
    assert sql(path, "SELECT feedback_id, ranking_id, given_at, source, document_id, reward, typeof(ranking_id)"
                     " FROM feedback ORDER BY reward") == [
        ("f", "r'1", "2026-11-21T23:48:08.000Z", "user", "a", -0.5, "text"),
        ("f", "r'1", "2026-11-21T23:48:08.000Z", "user", "ü", 1, "text")]


def test_without_text_there_is_none_in_the_file(store, path):
    """What was not opted into is NULL."""
    store.append([make_ranking()])
    assert sql(path, "SELECT DISTINCT query_text FROM rankings") == [(None,)]
    assert sql(path, "SELECT DISTINCT document_text FROM shown_documents") == [(None,)]


def test_a_sign_costs_one_pragma(store, statements):
    """The hot path asks for the data version and nothing else."""
    store.sign()
    assert statements == ["PRAGMA data_version"]


def test_reading_costs_a_bounded_number_of_queries(store, statements):
    """One query for events, one for the rankings of feedback whose rankings were read before."""
    events = [make_feedback(make_ranking(f"r{number}"), feedback_id=f"f{number}") for number in range(100)]
    positions = store.append([event.ranking for event in events]).positions
    store.append(events)
    statements.clear()
    assert len(store.read(after=positions[-1])) == 100
    assert [statement.split()[0] for statement in statements] == ["BEGIN", "SELECT", "SELECT", "COMMIT"]


def test_feedback_whose_ranking_is_stored_is_one_statement(store, statements):
    """Somebody waits for it; a statement is a transaction by itself."""
    feedback = make_feedback()
    store.append([feedback.ranking])
    statements.clear()
    store.append([feedback])
    assert [statement.split()[0] for statement in statements] == ["INSERT"]


def test_writing_is_one_transaction(store, statements):
    """Each event costs one look and one insert, all of them one transaction."""
    feedback = make_feedback()
    store.append([make_ranking("r0")])
    statements.clear()
    store.append([feedback.ranking, feedback])
    verbs = ["BEGIN", *["SELECT", "INSERT"] * 2, "PRAGMA", "COMMIT"]
    assert [statement.split()[0] for statement in statements] == verbs


def test_vectors_are_read_with_one_query(store, statements):
    """A hundred keys are one SELECT, two thousand are too."""
    statements.clear()
    store.get_vectors("x", "e", [f"k{number}" for number in range(2000)])
    assert len(statements) == 1


def test_own_caches_do_not_change_the_own_sign(store):
    """Vectors and snapshots are no events: writing them makes nobody of this process read again."""
    sign = store.append([make_ranking()]).sign
    store.put_vectors("x", "e", [StoredVector("k", np.ones(2, np.float16))], at=1.0, max_rows=10)
    store.save_snapshot("default", "fold", Snapshot(store.head().epoch, 1, b"state"))
    assert store.sign() == sign


def test_appends_of_others_within_an_append_are_noticed(path):
    """What somebody else wrote before this append shows in its sign, what they write after it changes the sign."""
    with closing(SqliteStore(path)) as mine, closing(SqliteStore(path)) as theirs:
        first = mine.append([make_ranking("r1")])
        theirs.append([make_ranking("r2")])
        second = mine.append([make_ranking("r3")])
        assert second.positions == (3,)
        assert second.sign[0] != first.sign[0]
        assert second.before not in (first.sign, second.sign)
        assert mine.sign() == second.sign
        theirs.append([make_ranking("r4")])
        assert mine.sign() != second.sign


def test_appends_of_others_between_two_feedbacks_are_noticed(path):
    """Nobody may go on from the sign of feedback without reading what came between."""
    with closing(SqliteStore(path)) as mine, closing(SqliteStore(path)) as theirs:
        feedback = make_feedback(make_ranking("r1"))
        first = mine.append([feedback.ranking])
        theirs.append([make_ranking("r2")])
        second = mine.append([feedback])
        third = mine.append([replace(feedback, feedback_id="f2")])
        assert third.before == second.sign
        assert mine.sign() not in (first.sign, second.sign, third.sign)


def test_while_a_store_writes_its_sign_vouches_for_nothing_new(path):
    """What others did since the last look is unknown until the lock is free again, so feedback is not vouched for."""
    with closing(SqliteStore(path)) as mine, closing(SqliteStore(path)) as theirs:
        feedback = make_feedback()
        mine.append([feedback.ranking])
        looked = mine.sign()
        theirs.append([make_ranking("r2")])
        appended = mine.append([feedback])
        with mine._connections.lock:
            assert mine.sign() == looked
        assert mine.sign() not in (looked, appended.sign)



# erasure


def bytes_of(folder):
    return b"".join(file.read_bytes() for file in sorted(folder.iterdir()))


@pytest.mark.parametrize("what", [
    Erasure(namespace="secret-namespace"),
    Erasure(session="secret-session"),
    Erasure(document_ids=("secret-document",)),
    Erasure(older_than=1e10),
], ids=["namespace", "session", "document", "age"])
def test_what_is_erased_is_gone_from_the_bytes(tmp_path, path, what):
    """Neither the file nor the write-ahead log holds the erased document any more."""
    secret = "secret-document"
    with closing(SqliteStore(path)) as store:
        for number in range(60):
            ranking = make_ranking(f"r{number}", namespace="secret-namespace", session="secret-session",
                                   documents=(secret, *(f"other-{i}" for i in range(number))),
                                   document_texts=tuple(f"{secret} text" if i == 0 else "t" for i in range(number + 1)))
            store.append([make_feedback(ranking, feedback_id=f"f{number}", rewards=((secret, 1.0),))])
        store.put_vectors("secret-namespace", "e", [StoredVector("k", np.ones(8, np.float16), secret)], at=1.0,
                          max_rows=10)
        answers = [make_answer(f"q{number}", namespace="secret-namespace", documents=((secret, "h"),), text=secret)
                   for number in range(60)]
        store.put_answers(answers, bounds=NO_BOUNDS)
        store.remove_answers(Removal("secret-namespace", documents={secret: "h"}))
        epoch = store.head().epoch
        store.save_snapshot("secret-namespace", "fold", Snapshot(epoch, 1, secret.encode() * 1000))
        assert secret.encode() in bytes_of_open(tmp_path)
        store.erase(what)
        if what.session is not None:
            store.erase(Erasure(document_ids=(secret,)))  # a session has no vectors
        assert secret.encode() not in bytes_of_open(tmp_path)
    assert secret.encode() not in bytes_of(tmp_path)


def bytes_of_open(folder):
    """Read in another process: closing a file here would drop SQLite's locks on it."""
    code = "import sys, pathlib; [sys.stdout.buffer.write(f.read_bytes()) for f in pathlib.Path(sys.argv[1]).iterdir()]"
    return subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, check=True).stdout


def test_an_erasure_beside_a_reader_is_said_to_linger(path, caplog):
    """The erasure holds; a log line says that old bytes leave the write-ahead log later."""
    with closing(SqliteStore(path, busy_timeout_seconds=0.05)) as store, closing(sqlite3.connect(path)) as reader:
        store.append([make_ranking()])
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM events").fetchall()
        with caplog.at_level(logging.WARNING):
            assert store.erase(Erasure(namespace="default")).rankings == 1
    assert "erased bytes leave it when the last process closes the store" in caplog.text


names = st.sampled_from(["x", "y"])
sessions = st.sampled_from([None, "s1", "s2"])
times = st.integers(0, 9).map(float)


@st.composite
def feedbacks(draw):
    documents = draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4, unique=True))
    ranking = make_ranking(f"r{draw(st.integers(0, 5))}", namespace=draw(names), session=draw(sessions),
                           at=draw(times), documents=documents)
    rewarded = draw(st.lists(st.sampled_from(documents), min_size=1, unique=True))
    return make_feedback(ranking, feedback_id=f"f{draw(st.integers(0, 9))}", at=draw(times),
                         rewards=tuple((name, 0.5) for name in rewarded))


erasures = st.builds(
    Erasure, namespace=st.none() | names, session=sessions, older_than=st.none() | times,
    document_ids=st.none() | st.lists(st.sampled_from("abcde"), max_size=2, unique=True).map(tuple),
).filter(lambda what: what != Erasure())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.lists(feedbacks(), max_size=5) | erasures, max_size=6))
def test_sqlite_and_memory_do_the_same(steps):
    """Whatever is appended and erased, both stores hold the same events at the same positions."""
    with closing(MemoryStore()) as plain, closing(SqliteStore()) as store:
        for step in steps:
            for each in (plain, store):
                for event in step if isinstance(step, list) else []:
                    each.append([replace(event, ranking=_known(each, event))])
            if isinstance(step, Erasure):
                assert plain.erase(step) == store.erase(step)
            assert plain.head() == store.head()
        expected, actual = plain.read(), store.read()
    assert [entry.position for entry in expected] == [entry.position for entry in actual]
    for one, other in zip(expected, actual, strict=True):
        assert_same_event(one.event, other.event)


def _known(store, event):
    return store.ranking(event.ranking_id, namespace=event.namespace) or event.ranking


versions = st.sampled_from(["h1", "h2"])
bindings = st.dictionaries(st.sampled_from("abc"), versions, max_size=2).map(lambda held: tuple(held.items()))
answers = st.builds(
    make_answer, st.sampled_from("pqrs"), namespace=names, scope=st.sampled_from("st"), created_at=times,
    expires_at=st.none() | times, documents=bindings, cost=st.sampled_from([0.0, 0.5, 2.0]), text=st.text(max_size=3))
puts = st.tuples(answers, st.integers(1, 4), st.none() | st.integers(0, 3))
removals = st.builds(
    Removal, names, scope=st.none() | st.sampled_from("st"), older_than=st.none() | times,
    documents=st.none() | st.dictionaries(st.sampled_from("abc"), st.none() | versions, min_size=1, max_size=2))
servings = st.builds(make_served, answers, st.sampled_from(["h1", "h2", "h3"]))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(puts | removals | servings | erasures, max_size=12))
def test_sqlite_and_memory_keep_the_same_answers(steps):
    """Whatever is put, removed, served and erased, both stores hold the same answers and events."""
    keys = [(scope, question) for scope in "st" for question in "pqrs"]
    with closing(MemoryStore()) as plain, closing(SqliteStore()) as store:
        marks = [(0, 0)]
        for step in steps:
            one, other = (_do(each, step, [mark[side] for mark in marks]) for side, each in enumerate((plain, store)))
            assert one == other
            marks.append((plain.answers_mark(), store.answers_mark()))
            for namespace in "xy":
                expected, actual = (each.find_answers(namespace, keys).answers for each in (plain, store))
                assert expected.keys() == actual.keys()
                for key, answer in expected.items():
                    assert_same_answer(answer, actual[key])
        assert plain.read_answer_events() == store.read_answer_events()


def _do(store, step, marks):
    if isinstance(step, Removal):
        return store.remove_answers(step)
    if isinstance(step, Erasure):
        return store.erase(step)
    if isinstance(step, tuple):
        answer, room, back = step
        bounds = AnswerBounds(max_entries=room, max_bytes=1 << 30, expired_before=answer.created_at)
        mark = None if back is None else marks[max(0, len(marks) - 1 - back)]
        done = store.put_answers([answer], bounds=bounds, mark=mark)
        return done.stored, done.evicted
    return store.record_answers([step])


def test_a_look_at_answers_is_one_statement(store, statements):
    """By key, by id, and for the mark alone: one query each, and nothing is written."""
    store.put_answers([make_answer(f"q{number}") for number in range(5)], bounds=NO_BOUNDS)
    keys = [("s", f"q{number}") for number in range(9)]
    for look in (lambda: store.find_answers("default", keys), store.answers_mark,
                 lambda: store.get_answers("default", ["a", "b"]), lambda: store.read_questions("default")):
        statements.clear()
        look()
        assert len(statements) == 1
        assert statements[0].startswith("SELECT")


def test_answers_are_found_by_index(store):
    """No look-up and no removal walks through all answers."""
    plans = {
        sqlite_answers._FIND: ("[]", "x"), sqlite_answers._GET: ("[]", "x"),
        sqlite_answers._QUESTIONS: ("x", 0, 1),
        "DELETE FROM answers WHERE " + " AND ".join(sqlite_answers._concerned(Removal("x", documents={"a": "h"}))[0]):
            ("x", "[]"),
    }
    connection = store._connections.writer()
    for query, values in plans.items():
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {query}", values)]
        assert not [step for step in plan if step.startswith("SCAN") and "VIRTUAL TABLE" not in step], plan


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=3, max_size=3), st.text(max_size=20))
def test_encoding_twice_changes_nothing(numbers, text):
    """An event that went through a row once comes back the same from then on."""
    ranking = make_ranking(documents=(text, text + "b", "c"), scores=tuple(numbers), signals={text: tuple(numbers)},
                           query_text=text, degraded=(text,))
    once = codec.encode_ranking(ranking)
    twice = codec.encode_ranking(codec.decode_ranking(codec.StoredRow(1, *once)))
    assert once == twice


# processes and threads


def in_child(work: Callable[[], object]) -> int:
    """Fork, do the work, and return the exit code: 0 when it did not raise."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


fork_warning = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@forks
@fork_warning
@pytest.mark.parametrize("kind", ["file", "memory"])
def test_a_forked_child_has_connections_of_its_own(path, kind):
    """Parent and child go on writing after a fork; with a file each sees what the other wrote."""
    with closing(SqliteStore(path if kind == "file" else ":memory:")) as store:
        store.append([make_ranking("before")])
        store.read()

        def child():
            assert [entry.event.ranking_id for entry in store.read()] == ["before"]
            store.append([make_ranking("child")])
            store.close()

        assert in_child(child) == 0
        store.append([make_ranking("parent")])
        names = [entry.event.ranking_id for entry in store.read()]
        assert names == (["before", "child", "parent"] if kind == "file" else ["before", "parent"])
        assert store.health()["integrity"] == "ok"


@forks
@fork_warning
def test_a_fork_amid_readers_and_writers(path):
    """Forking while other threads use the store neither hangs nor loses what was acknowledged."""
    stop = threading.Event()
    written: list[str] = []

    def write(writer):
        number = 0
        while not stop.is_set():
            number += 1
            store.append([make_ranking(f"{writer}-{number}")])
            written.append(f"{writer}-{number}")
            store.read(limit=5)

    def child(round_):
        store.append([make_ranking(f"child-{round_}")])
        store.close()

    with closing(SqliteStore(path)) as store, ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(write, name) for name in "abcd"]
        codes = [in_child(lambda round_=round_: child(round_)) for round_ in range(10)]
        stop.set()
        for writer in writers:
            writer.result()
        assert codes == [0] * 10
        assert {*written, *(f"child-{round_}" for round_ in range(10))} == {
            entry.event.ranking_id for entry in read_all(store)}
        assert store.health()["integrity"] == "ok"


@forks
@fork_warning
@pytest.mark.parametrize("kind", ["file", "memory", "plain"])
def test_a_fork_inside_the_stores_own_lock(path, monkeypatch, kind):
    """A thread that forks while it holds the lock waits a moment; the child then works."""
    monkeypatch.setattr("neuralcache_plugins.stores.forking.PATIENCE_SECONDS", 0.05)
    with closing(MemoryStore() if kind == "plain" else SqliteStore(path if kind == "file" else ":memory:")) as store:
        store.append([make_ranking("before")])
        lock = store._lock if kind == "plain" else store._connections.lock
        with lock:
            code = in_child(lambda: store.append([make_ranking("child")]))
        assert code == 0
        store.append([make_ranking("parent")])
    sqlite_connections._orphans.clear()


def test_reading_threads_share_few_connections(store):
    """A thread that is gone leaves no connection behind."""
    store.append([make_ranking()])
    for _ in range(20):
        thread = threading.Thread(target=store.read)
        thread.start()
        thread.join()
    assert len(store._connections._idle) == 1


def test_closing_while_threads_read(path):
    """Readers either finish or are told that the store is closed."""
    store = SqliteStore(path)
    store.append([make_ranking(f"r{number}") for number in range(50)])

    def read():
        try:
            while True:
                store.read()
        except StoreClosedError:
            return True

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read) for _ in range(4)]
        time.sleep(0.05)
        store.close()
        assert [reader.result() for reader in readers] == [True] * 4
    assert not path.with_name("telemetry.db-wal").exists()


def test_a_store_nobody_closed_is_closed_at_the_end(path):
    """The interpreter ends without a warning and leaves no write-ahead log."""
    code = ("import sys; from neuralcache_plugins.stores.sqlite import SqliteStore\n"
            "from neuralcache_plugins.testing import make_ranking\n"
            "store = SqliteStore(sys.argv[1]); store.append([make_ranking()]); store.read()")
    ended = subprocess.run([sys.executable, "-W", "error", "-X", "dev", "-c", code, str(path)], capture_output=True,
                           text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert [file.name for file in path.parent.iterdir()] == ["telemetry.db"]


# URLs


@pytest.mark.parametrize(("url", "place"), [
    ("sqlite:///:memory:", "sqlite:///:memory:"),
    ("sqlite://:memory:", "sqlite:///:memory:"),
    ("SQLite://:memory:", "sqlite:///:memory:"),
    ("memory://", "memory://"),
])
def test_urls_without_a_file(url, place):
    """Both spellings of a memory database, and the plain store."""
    with closing(open_store(url)) as store:
        assert store.url == place


def test_urls_of_files(tmp_path, monkeypatch):
    """Three slashes are relative, four are absolute, a tilde is the home folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for url, name in (("sqlite:///rel.db", "rel.db"), (f"sqlite:///{tmp_path}/abs.db", "abs.db"),
                      ("sqlite:///~/home.db", "home.db")):
        with closing(open_store(url)) as store:
            assert store.url == f"sqlite:///{(tmp_path / name).as_posix()}"
        assert (tmp_path / name).exists()


def test_a_store_is_returned_as_it_is():
    """Whoever brings a store keeps it."""
    with closing(MemoryStore()) as store:
        assert open_store(store) is store


def test_none_means_the_default_url():
    """The caller's settings decide."""
    with closing(open_store(None, default_url="memory://")) as store:
        assert isinstance(store, MemoryStore)


def test_none_without_a_default_asks_the_environment(monkeypatch, tmp_path):
    """``open_store()`` obeys NEURALCACHE_STORE_URL."""
    monkeypatch.setenv("NEURALCACHE_STORE_URL", f"sqlite:///{tmp_path}/env.db")
    with closing(open_store()) as store:
        assert store.url.endswith("/env.db")


def test_none_without_anything_is_a_file_in_the_users_data_folder(monkeypatch, tmp_path):
    """Never the current directory."""
    monkeypatch.delenv("NEURALCACHE_STORE_URL", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with closing(open_store()) as store:
        assert store.url.endswith("telemetry.db")
    assert not (tmp_path / "telemetry.db").exists()


@pytest.mark.parametrize("url", ["f.db", "/tmp/f.db", "sqlite:f.db", "sqlite:/f.db", "", "://x"])
def test_what_is_no_url(url):
    """The message says what came and what is accepted."""
    with pytest.raises(InvalidInputError, match=rf"^a store URL must look like sqlite:///file\.db, .*, got '{url}'$"):
        open_store(url, default_url="memory://") if url else open_store("")


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite://host/f.db", "sqlite:///folder/", "sqlite://f.db"])
def test_malformed_sqlite_urls(url):
    """The message shows the three forms."""
    with pytest.raises(InvalidInputError, match=rf"^a SQLite URL must look like sqlite:///relative.*, got '{url}'$"):
        open_store(url)


def test_a_plain_memory_store_has_no_name():
    """It cannot be shared by name, so a name is a mistake."""
    with pytest.raises(InvalidInputError, match=r"got 'memory://shared'$"):
        open_store("memory://shared")


@pytest.mark.parametrize("what", [42, b"sqlite:///f.db", object()])
def test_what_is_no_store(what):
    """Neither a store nor a URL."""
    with pytest.raises(InvalidInputError, match=r"^a store must be a TelemetryStore, a URL or None, got "):
        open_store(what)


@pytest.mark.parametrize(("url", "shown"), [
    ("redis://:pw@h", "redis://***@h"),
    ("postgres://user:p@ss@h/db?password=pw&x=1", "postgres://***@h/db?password=***&x=***"),
    ("user:pw@host", "***@host"),
    ("redis:user:pw@host", "***@host"),
    ("memory://", "memory://"),
])
def test_secrets_are_masked(url, shown):
    """User, password and query values never appear."""
    assert mask(url) == shown
    if "pw" in url:
        with pytest.raises(InvalidInputError) as caught:
            open_store(url)
        assert "pw" not in str(caught.value)
        assert shown in str(caught.value)


def offer(monkeypatch, load):
    class EntryPoint:
        name = "mine"

        def load(self):
            return load

    def entry_points(*, group, name=None):
        assert group == "neuralcache_plugins.stores"
        return [EntryPoint()] if name in (None, "mine") else []

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)


def test_an_installed_package_offers_a_scheme(monkeypatch):
    """The entry point's callable gets the URL and its store is returned."""
    urls = []

    def make(url):
        urls.append(url)
        return MemoryStore()

    offer(monkeypatch, make)
    with closing(open_store("mine://place?x=1")) as store:
        assert isinstance(store, MemoryStore)
    assert urls == ["mine://place?x=1"]
    with pytest.raises(InvalidInputError, match=r"memory://, mine://\.\.\.$"):
        open_store("other://place")


def test_an_offered_store_must_be_one(monkeypatch):
    """What the entry point returns is checked."""
    offer(monkeypatch, lambda url: "no store")
    with pytest.raises(InvalidInputError, match=r"^a store must be a TelemetryStore, a URL or None, got str$"):
        open_store("mine://place")


def test_repr_shows_the_place():
    """And nothing else."""
    with closing(SqliteStore()) as store:
        assert repr(store) == "SqliteStore('sqlite:///:memory:')"


@pytest.mark.parametrize("damage", [
    """UPDATE events SET body = replace(body, '"documents":[', '"documents":[x')""",
    "UPDATE events SET vector = substr(vector, 1, 5)",
    "UPDATE events SET body = '{}'",
])
def test_rows_that_sqlite_does_not_know_are_damaged_are_store_errors(tmp_path, damage):
    """The message names the position and not what is written there; the verdict on the store's health says so."""
    path = tmp_path / "t.db"
    with closing(open_store(f"sqlite:///{path}")) as store:
        store.append([make_ranking(query_vector=np.ones(8, dtype=np.float32))])
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(damage)
        connection.commit()
    with closing(open_store(f"sqlite:///{path}")) as store:
        with pytest.raises(StoreCorruptError, match="position 1 is damaged"):
            store.read()
        if "'{}'" not in damage:
            assert store.health()["integrity"] == "1 events cannot be read"


def test_a_file_removed_while_open_takes_no_more_writes(tmp_path):
    """What is written to it would be lost without a word."""
    path = tmp_path / "t.db"
    with closing(open_store(f"sqlite:///{path}")) as store:
        store.append([make_ranking()])
        path.unlink()
        with pytest.raises(StoreError, match="removed or replaced"):
            store.append([make_ranking("another")])


def test_events_in_memory_are_read_on_from_where_one_was() -> None:
    """A look of the cache asks for new events; it must not take longer with every event there ever was."""
    class Unread(list[RecordedAnswer]):
        def __iter__(self) -> Iterator[RecordedAnswer]:
            raise AssertionError("read from the beginning")

    store = MemoryStore()
    store.put_answers([make_answer(f"q{number}") for number in range(3)], bounds=NO_BOUNDS)
    store._answer_log = Unread(store._answer_log)

    assert [entry.position for entry in store.read_answer_events(after=1)] == [2, 3]
    assert store.read_answer_events(after=3) == []
