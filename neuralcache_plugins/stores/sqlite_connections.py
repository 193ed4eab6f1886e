"""Connections of one SQLite store: one that writes, and as many that read as there are threads reading at once.

No connection is ever used by two threads at a time, nor by two processes (see ``forking``). All SQLite errors are
translated here.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from neuralcache_plugins.errors import (
    InvalidInputError,
    StoreBusyError,
    StoreClosedError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
)
from neuralcache_plugins.stores import forking
from neuralcache_plugins.stores.sqlite_schema import roll_back

Synchronous = Literal["normal", "full"]

_BY_CODE: dict[int, type[StoreError]] = {
    sqlite3.SQLITE_BUSY: StoreBusyError,
    sqlite3.SQLITE_LOCKED: StoreBusyError,
    sqlite3.SQLITE_FULL: StoreFullError,
    sqlite3.SQLITE_READONLY: StoreFullError,
    sqlite3.SQLITE_CANTOPEN: StoreFullError,
    sqlite3.SQLITE_PERM: StoreFullError,
    sqlite3.SQLITE_CORRUPT: StoreCorruptError,
    sqlite3.SQLITE_NOTADB: StoreCorruptError,
}

_WAYS_OUT: dict[type[StoreError], str] = {
    StoreBusyError: "; another writer holds it, try again or raise busy_timeout_seconds",
    StoreFullError: "; make room, or choose a place that can be written to",
    StoreCorruptError: "; move it aside and start fresh with: python -m neuralcache_plugins doctor --quarantine",
}

_orphans: list[sqlite3.Connection] = []
"""Connections of a parent process that did not come to rest before the fork: kept, so that nothing closes them."""


def translate(error: sqlite3.Error, place: str) -> StoreError:
    """Return the store error that says the same as the driver's error."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None and isinstance(error, sqlite3.ProgrammingError) and "closed" in str(error):
        return StoreClosedError(f"the store {place} is closed")
    if code is None and "Could not decode" in str(error):
        # the driver quotes the text that it cannot decode, and that is nobody's to log
        return StoreCorruptError(f"{place}: text in it is not UTF-8{_WAYS_OUT[StoreCorruptError]}")
    kind = StoreError if code is None else _BY_CODE.get(code & 0xFF, StoreError)
    return kind(f"{place}: {error}{_WAYS_OUT.get(kind, '')}")


def not_unicode(error: UnicodeEncodeError) -> InvalidInputError:
    """Return the error for text with lone surrogates, where it cannot be kept in an escaped form."""
    return InvalidInputError(f"text that is not Unicode cannot be stored: {error.object!r}")


class Transaction:
    """All of it happens or nothing. A class and not a generator: feedback waits for every microsecond of it."""

    __slots__ = ("_connection", "_place")

    def __init__(self, connection: sqlite3.Connection, place: str) -> None:
        self._connection = connection
        self._place = place

    def __enter__(self) -> sqlite3.Connection:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            raise translate(error, self._place) from error
        return self._connection

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        try:
            if error is not None:
                raise error
            self._connection.execute("COMMIT")
        except sqlite3.Error as trouble:
            roll_back(self._connection)
            raise translate(trouble, self._place) from trouble
        except UnicodeEncodeError as trouble:
            roll_back(self._connection)
            raise not_unicode(trouble) from trouble
        except BaseException:
            roll_back(self._connection)
            raise


class Reading:
    """A connection lent to read with. A class and not a generator: a look in the cache of answers takes five."""

    __slots__ = ("_connection", "_connections")

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def __enter__(self) -> sqlite3.Connection:
        try:
            self._connection = self._connections.lend()
        except sqlite3.Error as error:
            raise translate(error, self._connections.place) from error
        return self._connection

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._connections.take_back(self._connection)
        if isinstance(error, sqlite3.Error):
            raise translate(error, self._connections.place) from error
        if isinstance(error, UnicodeEncodeError):
            raise not_unicode(error) from error


class Connections:
    """Opens, lends and closes connections to one file, or to one memory database (``path=None``)."""

    def __init__(self, path: Path | None, *, place: str, synchronous: Synchronous,
                 busy_timeout_seconds: float) -> None:
        self.lock = threading.Lock()
        """Held by whoever uses the writer."""
        self.opened = 0
        """How often a writer was opened; ``PRAGMA data_version`` starts anew with each."""
        self._path = path
        self._path_text = str(path)
        self.place = place
        self._synchronous = synchronous
        self._busy_timeout_seconds = busy_timeout_seconds
        self._identity: tuple[int, int] | None = None
        self._entry = threading.Lock()  # whoever begins to read passes it; a fork closes it
        self._gate = threading.Lock()  # guards what follows; held for moments, and nothing is taken under it
        self._writer: sqlite3.Connection | None = None
        self._idle: list[sqlite3.Connection] = []
        self._lent: set[sqlite3.Connection] = set()
        self._closed = False
        self._paused: list[threading.Lock] = []
        forking.watch(self)

    @contextmanager
    def translating(self) -> Iterator[None]:
        """Raise store errors instead of the driver's."""
        try:
            yield
        except UnicodeEncodeError as error:
            raise not_unicode(error) from error
        except sqlite3.Error as error:
            raise translate(error, self.place) from error

    def writer(self) -> sqlite3.Connection:
        """Return the connection that writes; only for the holder of ``lock``."""
        if self._writer is None:
            with forking.opening:
                self._check_open()
                self._writer = self._open_writer()
                self.opened += 1
        return self._writer

    def switch_to_wal(self) -> None:
        """Let readers and the writer work side by side; the file remembers it. Only for the holder of ``lock``."""
        # SQLite does not wait for others during this one statement, whatever the timeout says
        connection = self.writer()
        deadline = time.monotonic() + self._busy_timeout_seconds
        while self._path is not None and connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            try:
                connection.execute("PRAGMA journal_mode = WAL").fetchone()
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def check_place(self) -> None:
        """Raise ``StoreError`` if the file is no longer the one that is open: writes to it would be lost."""
        if self._identity is None:
            return
        try:
            now = os.stat(self._path_text)  # noqa: PTH116  # feedback waits, and a Path takes half as long again
        except FileNotFoundError:
            now = None
        if now is None or (now.st_dev, now.st_ino) != self._identity:
            raise StoreError(f"{self.place} was removed or replaced while it was open; open the store again")

    def transaction(self) -> Transaction:
        """Write: all of it happens or nothing. Only for the holder of ``lock``."""
        if self._writer is None:
            with self.translating():
                return Transaction(self.writer(), self.place)
        return Transaction(self._writer, self.place)

    def reading(self) -> Reading:
        """Lend a connection to read with."""
        return Reading(self)

    def lend(self) -> sqlite3.Connection:
        """Return a connection to read with, until ``take_back``; of a memory database the only one, with its lock."""
        if self._path is not None:
            return self._borrow()
        self.lock.acquire()
        try:
            return self.writer()
        except BaseException:
            self.lock.release()
            raise

    def take_back(self, connection: sqlite3.Connection) -> None:
        """Take back what was lent."""
        if self._path is not None:
            self._give_back(connection)
        else:
            self.lock.release()

    def close(self) -> None:
        """Close everything; a connection that is lent is closed when it comes back."""
        with self.lock, self._entry, self._gate:
            self._closed = True
            self._close_idle()

    def pause(self) -> None:
        """Let what is under way finish and close all connections; called before a fork."""
        self._paused = []
        deadline = time.monotonic() + forking.PATIENCE_SECONDS
        for lock in (self.lock, self._entry):
            if not lock.acquire(timeout=forking.PATIENCE_SECONDS):
                return
            self._paused.append(lock)
        # a memory database cannot be opened again: the child gets a copy of it
        while self._path is not None and not self._close_if_idle() and time.monotonic() < deadline:
            time.sleep(0.001)

    def resume(self) -> None:
        """Go on after a fork; connections are opened again when they are needed."""
        for lock in self._paused:
            lock.release()

    def restart(self) -> None:
        """Leave the parent's connections and locks alone, in the child."""
        self.lock, self._entry, self._gate = threading.Lock(), threading.Lock(), threading.Lock()
        if self._path is not None:
            _orphans.extend([*self._idle, *self._lent, *filter(None, [self._writer])])
            self._idle, self._lent, self._writer = [], set(), None

    def _borrow(self) -> sqlite3.Connection:
        with self._entry:
            self._check_open()
            connection = self._pop_idle() or self._open_reader()
            with self._gate:
                self._lent.add(connection)
            return connection

    def _give_back(self, connection: sqlite3.Connection) -> None:
        with self._gate:
            if connection not in self._lent:
                return  # this process was forked meanwhile: the connection is the parent's
            self._lent.remove(connection)
            if self._closed:
                connection.close()
            else:
                self._idle.append(connection)

    def _pop_idle(self) -> sqlite3.Connection | None:
        with self._gate:
            return self._idle.pop() if self._idle else None

    def _open_reader(self) -> sqlite3.Connection:
        with forking.opening:
            connection = self._connect()
        connection.execute("PRAGMA query_only = ON")
        return connection

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosedError(f"the store {self.place} is closed")

    def _close_if_idle(self) -> bool:
        with self._gate:
            if self._lent:
                return False
            self._close_idle()
            return True

    def _close_idle(self) -> None:
        with self.translating():
            while self._idle:
                self._idle.pop().close()
            if self._writer is not None:
                self._writer.close()
                self._writer = None

    def _open_writer(self) -> sqlite3.Connection:
        if self._path is not None:
            _create_private(self._path)
            _check_size(self._path)
        connection = self._connect()
        try:
            self._set_up_writer(connection)
        except BaseException:
            connection.close()
            raise
        if self._path is not None:
            found = self._path.stat()
            self._identity = found.st_dev, found.st_ino
        return connection

    def _set_up_writer(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA temp_store = MEMORY")
        if self._path is None:
            return
        connection.execute(f"PRAGMA synchronous = {self._synchronous.upper()}")
        connection.execute("PRAGMA secure_delete = ON")  # what is erased must be gone from the file

    def _connect(self) -> sqlite3.Connection:
        # mode=rw: only _create_private makes files, with the mode that they must have
        target = ":memory:" if self._path is None else f"{self._path.as_uri()}?mode=rw"
        return sqlite3.connect(target, uri=self._path is not None, timeout=self._busy_timeout_seconds,
                               isolation_level=None, check_same_thread=False)


def _create_private(path: Path) -> None:
    """Create an empty file for this user only, unless there is one.

    An existing file must not even be opened here: closing it would drop this process's locks on it
    (https://sqlite.org/howtocorrupt.html, section 2.2). SQLite gives its side files the mode of the main one.
    """
    if path.exists():
        return
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except OSError as error:
        if path.is_file():
            return  # another process was faster
        way_out = _WAYS_OUT[StoreFullError]
        raise StoreFullError(f"cannot create {path}: {error.strerror}{way_out}") from error


def _check_size(path: Path) -> None:
    # SQLite takes whatever is shorter than its smallest page for an empty file, and writes over it
    if path.exists() and 0 < path.stat().st_size < 512:
        raise StoreCorruptError(f"{path}: file is not a database{_WAYS_OUT[StoreCorruptError]}")
