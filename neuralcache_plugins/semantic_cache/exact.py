"""The exact tier: answers by key, from memory while nobody has changed anything, else from the store."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from neuralcache_plugins.contracts import AnswerBounds, AnswerKey, AnswerStore, CachedAnswer, Head


@dataclass(frozen=True, slots=True)
class Exact:
    """Answers by key, and where the store stood: its mark, and its head unless memory had all of them."""

    answers: Mapping[AnswerKey, CachedAnswer]
    mark: int
    head: Head | None = None


class ExactTier:
    """Answers of one namespace. Memory counts only while the store's mark is the one under which it was filled."""

    def __init__(self, store: AnswerStore, namespace: str, *, in_memory: int) -> None:
        self._store = store
        self._namespace = namespace
        self._room = in_memory
        self._lock = threading.Lock()
        self._mark = -1
        self._known: OrderedDict[AnswerKey, CachedAnswer] = OrderedDict()

    def find(self, keys: Sequence[AnswerKey]) -> Exact:
        """Return the answers under these keys, expired ones too: one look at the mark where memory may have some, one
        query for what is missing.

        Whatever was removed before this is called, by anyone, is not returned. The mark is the earlier of the two
        looks: what changes after it shows.
        """
        if not self._may_know(keys):
            found = self._store.find_answers(self._namespace, keys)
            self._recall((), found.mark)
            self._remember(found.answers.values(), found.mark)
            return Exact(found.answers, found.mark, found.head)
        mark = self._store.answers_mark()
        known = self._recall(keys, mark)
        missing = [key for key in keys if key not in known]
        if not missing:
            return Exact(known, mark)
        found = self._store.find_answers(self._namespace, missing)
        self._remember(found.answers.values(), found.mark)
        return Exact({**known, **found.answers}, mark, found.head)

    def put(self, answer: CachedAnswer, *, bounds: AnswerBounds, mark: int | None) -> bool:
        """Store an answer durably; False if it comes too late or is too large."""
        done = self._store.put_answers([answer], bounds=bounds, mark=mark)
        with self._lock:
            untouched = self._mark == done.before and not done.evicted
            if untouched or (not self._known and self._mark < done.mark):
                # nothing else was changed, or nothing is here that could have been
                self._mark = done.mark
        if done.stored[0]:
            self._remember([answer], done.mark)
        return done.stored[0]

    def put_all(self, answers: Sequence[CachedAnswer], *, bounds: AnswerBounds) -> int:
        """Store many answers durably, in one call, and return how many were kept. Memory finds out by the mark."""
        return sum(self._store.put_answers(answers, bounds=bounds).stored)

    def forget(self) -> None:
        """Keep nothing in memory."""
        with self._lock:
            self._known.clear()

    def restart_after_fork(self) -> None:
        """Take a new lock in a forked child."""
        self._lock = threading.Lock()

    def _may_know(self, keys: Sequence[AnswerKey]) -> bool:
        with self._lock:
            return any(key in self._known for key in keys)

    def _recall(self, keys: Sequence[AnswerKey], mark: int) -> dict[AnswerKey, CachedAnswer]:
        with self._lock:
            if mark > self._mark:
                self._known.clear()
                self._mark = mark
            if mark != self._mark:
                return {}  # another thread has looked later; what is here may be younger than this look
            found = {key: self._known[key] for key in keys if key in self._known}
            for key in found:
                self._known.move_to_end(key)
            return found

    def _remember(self, answers: Iterable[CachedAnswer], mark: int) -> None:
        with self._lock:
            if mark != self._mark:
                return
            for answer in answers:
                self._known[answer.key] = answer
                self._known.move_to_end(answer.key)
            while len(self._known) > self._room:
                self._known.popitem(last=False)
