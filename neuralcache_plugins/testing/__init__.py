"""For those who write stores, encoders and pipelines: conformance suites for stores, events to feed them, and fakes.

A store proves itself by a subclass of ``StoreConformance`` in its own tests; one that keeps cached answers too, by one
of ``AnswerStoreConformance`` as well::

    class TestMyStore(StoreConformance, AnswerStoreConformance):
        @pytest.fixture
        def store(self):
            store = MyStore(...)
            yield store
            store.close()

        @pytest.fixture
        def reopen(self, store):      # for persistent stores: another object on the same place
            return lambda: MyStore(...)
"""
from __future__ import annotations

from neuralcache_plugins.testing.answers import (
    AnswerStoreConformance,
    CacheStore,
    make_answer,
    make_judged,
    make_served,
    read_all_answer_events,
)
from neuralcache_plugins.testing.events import assert_same_event, make_feedback, make_ranking, read_all
from neuralcache_plugins.testing.fakes import FailingStore, FakeClock, HashingEncoder
from neuralcache_plugins.testing.telemetry import StoreConformance

__all__ = [
    "AnswerStoreConformance",
    "CacheStore",
    "FailingStore",
    "FakeClock",
    "HashingEncoder",
    "StoreConformance",
    "assert_same_event",
    "make_answer",
    "make_feedback",
    "make_judged",
    "make_ranking",
    "make_served",
    "read_all",
    "read_all_answer_events",
]
