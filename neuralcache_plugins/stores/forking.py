"""Stores across ``os.fork``: quiet before it, so that the child inherits neither a held lock nor an open file.

SQLite keeps file locks in tables that describe the whole process. A child that inherited open connections would
believe it holds locks that only its parent holds, and another process could then remove the log under its feet
(https://sqlite.org/howtocorrupt.html, section 2.6). Hence connections are closed before the fork, not after it.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol

PATIENCE_SECONDS = 1.0
"""How long a fork waits for what is under way; a thread that forks inside a store's own lock waits that long."""

opening = threading.Lock()
"""Held while files are created and connections opened: none may appear while a fork is under way."""


class Pausable(Protocol):
    """Something that must be quiet while the process forks."""

    def pause(self) -> None:
        """Finish what is under way, within ``PATIENCE_SECONDS``, and let nothing new begin."""

    def resume(self) -> None:
        """Go on; called in the parent and in the child."""

    def restart(self) -> None:
        """Make usable in the child what did not come to rest in time; called after ``resume``."""


def watch(store: Pausable) -> None:
    """Pause this object around every fork for as long as it lives."""
    _watched.add(store)


_watched: weakref.WeakSet[Pausable] = weakref.WeakSet()
_paused: list[Pausable] = []
_held: list[threading.Lock] = []
_one_fork_at_a_time = threading.Lock()


def _before() -> None:
    _one_fork_at_a_time.acquire()
    for store in list(_watched):
        store.pause()
        _paused.append(store)
    # last, as everywhere: whoever opens a connection already holds a lock of its store
    if opening.acquire(timeout=PATIENCE_SECONDS):
        _held.append(opening)


def _after_in_parent() -> None:
    for store in _paused:
        store.resume()
    _go_on()


def _after_in_child() -> None:
    for store in _paused:
        store.resume()
        store.restart()
    if not _held:
        _held.append(opening)  # held by a thread that does not exist here
    _go_on()


def _go_on() -> None:
    _paused.clear()
    for lock in _held:
        lock.release()
    _held.clear()
    _one_fork_at_a_time.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
