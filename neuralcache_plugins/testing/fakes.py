"""Fakes: a clock, an encoder and a store that fail or move only when told to."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Hashable, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt

from neuralcache_plugins.contracts import (
    AnswerBounds,
    AnswerEvent,
    AnswerKey,
    AnswerServed,
    AnswerTotals,
    Appended,
    CachedAnswer,
    CachedQuestion,
    Erasure,
    Event,
    FoundAnswers,
    Head,
    Lease,
    RankingServed,
    Receipt,
    Recorded,
    RecordedAnswer,
    Removal,
    Snapshot,
    StoredAnswers,
    StoredVector,
    StoreHealth,
    TelemetryStore,
)
from neuralcache_plugins.errors import StoreError
from neuralcache_plugins.testing.answers import CacheStore


class FakeClock:
    """A clock that moves only when told to: ``clock()`` returns seconds since the epoch."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return the time."""
        return self.now

    def advance(self, seconds: float) -> float:
        """Move by this much, backwards too, and return the new time."""
        self.now += seconds
        return self.now


class HashingEncoder:
    """Counts words into hashed columns with hashed signs: texts that share words are similar. For tests only.

    Words are compared after NFC and case folding. Column and sign come from different bytes of the digest, so that
    collisions cancel instead of adding up. A text without words gives the zero vector.
    """

    def __init__(self, width: int = 256) -> None:
        self.width = width
        self.calls = 0

    @property
    def fingerprint(self) -> str:
        """The identity of this encoder: its name and width."""
        return f"hashing-{self.width}"

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return one unit vector per text."""
        self.calls += 1
        return [self._embed(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        """Return the unit vector of a question."""
        self.calls += 1
        return self._embed(text)

    def _embed(self, text: str) -> list[float]:
        row = np.zeros(self.width)
        for word in re.findall(r"\w+", unicodedata.normalize("NFC", text).casefold()):
            digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=9).digest()
            row[int.from_bytes(digest[:8], "big") % self.width] += 1.0 if digest[8] & 1 else -1.0
        length = float(np.linalg.norm(row))
        return [float(value) for value in (row / length if length else row)]


class FailingStore:
    """A store in front of another one that fails when told to, before the other one is asked.

    What concerns answers needs an ``AnswerStore`` behind it.
    """

    def __init__(self, store: TelemetryStore) -> None:
        self.store = store
        self.calls: list[str] = []
        self._error: StoreError | None = None
        self._times: int | None = None

    def fail(self, error: StoreError | None = None, *, times: int | None = None) -> None:
        """Raise this error from now on, for so many calls if ``times`` is given."""
        self._error = error or StoreError("told to fail")
        self._times = times

    def recover(self) -> None:
        """Work again."""
        self._error = None

    @property
    def url(self) -> str:
        """The other store's URL."""
        return self.store.url

    def hash_key(self) -> bytes:
        """Pass on or fail."""
        return self._asked("hash_key").hash_key()

    def append(self, events: Sequence[Event], *, epoch: int | None = None) -> Appended:
        """Pass on or fail."""
        return self._asked("append").append(events, epoch=epoch)

    def read(self, *, after: int = 0, upto: int | None = None, namespace: str | None = None,
             limit: int = 1000) -> list[Recorded]:
        """Pass on or fail."""
        return self._asked("read").read(after=after, upto=upto, namespace=namespace, limit=limit)

    def head(self) -> Head:
        """Pass on or fail."""
        return self._asked("head").head()

    def sign(self) -> Hashable:
        """Pass on or fail."""
        return self._asked("sign").sign()

    def ranking(self, ranking_id: str, *, namespace: str | None = None) -> RankingServed | None:
        """Pass on or fail."""
        return self._asked("ranking").ranking(ranking_id, namespace=namespace)

    def latest_ranking(self, query_key: str, *, namespace: str) -> RankingServed | None:
        """Pass on or fail."""
        return self._asked("latest_ranking").latest_ranking(query_key, namespace=namespace)

    def traced_rankings(self, trace: str, *, namespace: str, limit: int = 100) -> list[RankingServed]:
        """Pass on or fail."""
        return self._asked("traced_rankings").traced_rankings(trace, namespace=namespace, limit=limit)

    def load_snapshot(self, namespace: str, fold: str) -> Snapshot | None:
        """Pass on or fail."""
        return self._asked("load_snapshot").load_snapshot(namespace, fold)

    def save_snapshot(self, namespace: str, fold: str, snapshot: Snapshot) -> None:
        """Pass on or fail."""
        self._asked("save_snapshot").save_snapshot(namespace, fold, snapshot)

    def get_vectors(self, namespace: str, encoder: str, keys: Sequence[str]) -> dict[str, npt.NDArray[np.float16]]:
        """Pass on or fail."""
        return self._asked("get_vectors").get_vectors(namespace, encoder, keys)

    def put_vectors(self, namespace: str, encoder: str, vectors: Sequence[StoredVector], *, at: float,
                    max_rows: int) -> None:
        """Pass on or fail."""
        self._asked("put_vectors").put_vectors(namespace, encoder, vectors, at=at, max_rows=max_rows)

    def erase(self, what: Erasure) -> Receipt:
        """Pass on or fail."""
        return self._asked("erase").erase(what)

    def namespaces(self) -> list[str]:
        """Pass on or fail."""
        return self._asked("namespaces").namespaces()

    def health(self) -> StoreHealth:
        """Pass on or fail."""
        return self._asked("health").health()

    def put_answers(self, answers: Sequence[CachedAnswer], *, bounds: AnswerBounds,
                    mark: int | None = None) -> StoredAnswers:
        """Pass on or fail."""
        return self._asked("put_answers").put_answers(answers, bounds=bounds, mark=mark)

    def find_answers(self, namespace: str, keys: Sequence[AnswerKey]) -> FoundAnswers:
        """Pass on or fail."""
        return self._asked("find_answers").find_answers(namespace, keys)

    def get_answers(self, namespace: str, entry_ids: Sequence[str]) -> dict[str, CachedAnswer]:
        """Pass on or fail."""
        return self._asked("get_answers").get_answers(namespace, entry_ids)

    def read_questions(self, namespace: str, *, after: int = 0, limit: int = 10_000) -> list[CachedQuestion]:
        """Pass on or fail."""
        return self._asked("read_questions").read_questions(namespace, after=after, limit=limit)

    def answers_mark(self) -> int:
        """Pass on or fail."""
        return self._asked("answers_mark").answers_mark()

    def remove_answers(self, what: Removal) -> int:
        """Pass on or fail."""
        return self._asked("remove_answers").remove_answers(what)

    def record_answers(self, events: Sequence[AnswerEvent], *, withdraw: Sequence[str] = ()) -> tuple[int, ...]:
        """Pass on or fail."""
        return self._asked("record_answers").record_answers(events, withdraw=withdraw)

    def read_answer_events(self, *, after: int = 0, namespace: str | None = None,
                           kinds: Sequence[type[AnswerEvent]] | None = None,
                           limit: int = 1000) -> list[RecordedAnswer]:
        """Pass on or fail."""
        return self._asked("read_answer_events").read_answer_events(
            after=after, namespace=namespace, kinds=kinds, limit=limit)

    def answer_totals(self, namespace: str, *, after: int = 0) -> AnswerTotals:
        """Pass on or fail."""
        return self._asked("answer_totals").answer_totals(namespace, after=after)

    def served_answer(self, hit_id: str, *, namespace: str) -> AnswerServed | None:
        """Pass on or fail."""
        return self._asked("served_answer").served_answer(hit_id, namespace=namespace)

    def acquire_lease(self, name: str, owner: str, *, now: float, seconds: float) -> Lease:
        """Pass on or fail."""
        return self._asked("acquire_lease").acquire_lease(name, owner, now=now, seconds=seconds)

    def release_lease(self, name: str, owner: str, *, failure: str | None = None, now: float = 0.0) -> None:
        """Pass on or fail."""
        self._asked("release_lease").release_lease(name, owner, failure=failure, now=now)

    def lease(self, name: str) -> Lease | None:
        """Pass on or fail."""
        return self._asked("lease").lease(name)

    def close(self) -> None:
        """Close the other store; never fails."""
        self.store.close()

    def _asked(self, name: str) -> CacheStore:
        self.calls.append(name)
        if self._error is not None and self._times != 0:
            if self._times is not None:
                self._times -= 1
            raise self._error
        return cast("CacheStore", self.store)
