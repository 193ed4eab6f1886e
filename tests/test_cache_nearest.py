"""The nearest cached questions: as by hand, with an index and without, whatever came and went meanwhile."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralcache_plugins import CacheSettings, SemanticCache
from neuralcache_plugins.contracts import CachedQuestion, Removal
from neuralcache_plugins.demo.corpus import pages
from neuralcache_plugins.encoders import LocalEncoder
from neuralcache_plugins.errors import MissingExtraError
from neuralcache_plugins.semantic_cache import approximate, nearest
from neuralcache_plugins.semantic_cache.nearest import NearestQuestions
from neuralcache_plugins.semantic_cache.shelf import Shelf
from neuralcache_plugins.stores.memory import MemoryStore
from neuralcache_plugins.testing import HashingEncoder
from neuralcache_plugins.testing.answers import NO_BOUNDS, make_answer

WAIT_SECONDS = 20.0


def question(number: int, vector: Any, made: float = 1.0, ends: float | None = None) -> CachedQuestion:
    row = np.asarray(vector, np.float16)
    return CachedQuestion(number, f"e{number}", "s", f"q{number}", "m", row, (), made, ends, "")


rows_of_three = st.lists(st.integers(-4, 4), min_size=3, max_size=3)
entries = st.lists(st.tuples(rows_of_three, st.integers(0, 3), st.none() | st.integers(1, 6)), max_size=40)


@settings(max_examples=150, deadline=None)
@given(entries, st.sets(st.integers(0, 39)), rows_of_three,
       st.integers(-1, 3), st.integers(0, 5), st.integers(1, 9), st.integers(2, 4))
def test_a_shelf_finds_what_one_would_by_hand(rows: Any, gone: set[int], asked: list[int], after: int, now: int,
                                               count: int, every: int) -> None:
    shelf = Shelf()
    for number, (vector, made, ends) in enumerate(rows):
        shelf.add(question(number, vector, made, ends))
        shelf.drop({f"e{name}" for name in gone if name <= number and name % 2})
    shelf.drop({f"e{name}" for name in gone})
    found = shelf.nearest(np.array(asked, np.float32), count, after, now, lambda one: one.number % every > 0)

    left = [(-float(np.dot(vector, asked)), number) for number, (vector, made, ends) in enumerate(rows)
            if number not in gone and made > after and (ends is None or ends > now) and number % every > 0]
    assert [(-near.similarity, near.cached.number) for near in found] == sorted(left)[:count]


def test_what_went_gives_its_room_back() -> None:
    shelf = Shelf()
    for number in range(100):
        shelf.add(question(number, [number, 1.0]))
    shelf.drop({f"e{number}" for number in range(60)})

    assert (len(shelf), shelf.gone, shelf.generation) == (40, 0, 1)
    assert shelf.nearest(np.array([1.0, 0.0], np.float32), 1, -math.inf, -math.inf, None)[0].cached.number == 99


# behind an index


@pytest.fixture(scope="module")
def sentences() -> tuple[list[str], np.ndarray]:
    """Return real sentences with their vectors, no two of them alike: of equals either may come first."""
    parts = [part.strip() for page in pages() for part in page.text.replace("\n", " ").split(". ")]
    texts = [text for text in dict.fromkeys(parts) if len(text) > 20][:1_800]
    rows = np.array(LocalEncoder().embed_documents(texts), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    kept = np.flatnonzero((np.tril(rows @ rows.T, -1) < 0.999).all(axis=1))[:1_500].tolist()
    return [texts[at] for at in kept], rows[kept]


@pytest.fixture(scope="module")
def texts(sentences: tuple[list[str], np.ndarray]) -> list[str]:
    return sentences[0]


@pytest.fixture(scope="module")
def vectors(sentences: tuple[list[str], np.ndarray]) -> np.ndarray:
    return sentences[1]


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let every few rows be worth a new index."""
    monkeypatch.setattr(nearest, "_FEW", 20)
    yield


def filled(store: MemoryStore, texts: list[str], vectors: np.ndarray) -> None:
    store.put_answers([make_answer(text, vector=row.astype(np.float16), encoder="m")
                       for text, row in zip(texts, vectors, strict=True)], bounds=NO_BOUNDS)


def names(found: Any) -> list[str]:
    return [near.cached.question for near in found]


def test_an_index_finds_nearly_all_that_the_exact_product_finds(texts: list[str], vectors: np.ndarray,
                                                                eager: None) -> None:
    """On real vectors: at least 99 % of the nearest eight, and the very nearest always but for one in 200."""
    with closing(MemoryStore()) as store:
        filled(store, texts[:1_200], vectors[:1_200])
        plain = NearestQuestions(store, "default", most=10_000)
        quick = NearestQuestions(store, "default", most=10_000, index="usearch", ann_threshold=500)
        for each in (plain, quick):
            each.catch_up()
        quick.wait(WAIT_SECONDS)
        (shelf,) = quick._shelves.values()
        assert shelf.index is not None
        assert shelf.unindexed == 0
        pairs = [(names(plain.find(row, scope="s", encoder="m")), names(quick.find(row, scope="s", encoder="m")))
                 for row in vectors[1_200:]]

    assert np.mean([len(set(one) & set(other)) / 8 for one, other in pairs]) >= 0.99
    assert np.mean([one[0] == other[0] for one, other in pairs]) >= 0.995


def test_what_comes_and_goes_behind_an_index_is_seen_at_once(texts: list[str], vectors: np.ndarray,
                                                             eager: None) -> None:
    with closing(MemoryStore()) as store:
        filled(store, texts[:600], vectors[:600])
        found = NearestQuestions(store, "default", most=10_000, index="usearch", ann_threshold=500)
        found.catch_up()
        found.wait(WAIT_SECONDS)
        (shelf,) = found._shelves.values()
        filled(store, texts[600:610], vectors[600:610])  # too few for another index
        found.catch_up()
        assert (shelf.index.size, shelf.unindexed) == (600, 10)
        assert names(found.find(vectors[605], scope="s", encoder="m"))[0] == texts[605]
        found.forget([f"entry-default-s-{texts[605]}", f"entry-default-s-{texts[5]}"])
        for place in (5, 605):
            assert texts[place] not in names(found.find(vectors[place], scope="s", encoder="m"))
        filled(store, texts[610:900], vectors[610:900])
        found.catch_up()
        found.wait(WAIT_SECONDS)
        assert shelf.index.size == 900
        assert names(found.find(vectors[850], scope="s", encoder="m"))[0] == texts[850]
        assert texts[5] not in names(found.find(vectors[5], scope="s", encoder="m"))


def test_where_most_of_what_an_index_knows_has_ended_nothing_is_missed(texts: list[str], vectors: np.ndarray,
                                                                       eager: None) -> None:
    """After an alarm only the newest entries may serve: the exact product finds them."""
    with closing(MemoryStore()) as store:
        filled(store, texts[:600], vectors[:600])
        store.put_answers([make_answer(text, vector=row.astype(np.float16), encoder="m", created_at=2e9)
                           for text, row in zip(texts[600:620], vectors[600:620], strict=True)], bounds=NO_BOUNDS)
        plain = NearestQuestions(store, "default", most=10_000)
        quick = NearestQuestions(store, "default", most=10_000, index="usearch", ann_threshold=500)
        for each in (plain, quick):
            each.catch_up()
        quick.wait(WAIT_SECONDS)
        for row in vectors[:50]:
            one, other = (names(each.find(row, scope="s", encoder="m", made_after=1.9e9)) for each in (plain, quick))
            assert one == other
            assert len(one) == 8


def test_a_restart_reads_all_from_the_store(texts: list[str], vectors: np.ndarray, eager: None) -> None:
    with closing(MemoryStore()) as store:
        filled(store, texts[:600], vectors[:600])
        found = NearestQuestions(store, "default", most=10_000, index="usearch", ann_threshold=500)
        found.catch_up()
        found.wait(WAIT_SECONDS)
        store.remove_answers(Removal("default"))
        filled(store, texts[600:1_200], vectors[600:1_200])
        found.restart()
        found.catch_up()
        found.wait(WAIT_SECONDS)
        (shelf,) = found._shelves.values()

        assert shelf.index.size == 600
        assert names(found.find(vectors[700], scope="s", encoder="m"))[0] == texts[700]


def test_many_search_while_it_grows_and_shrinks(texts: list[str], vectors: np.ndarray, eager: None) -> None:
    """Whatever was taken in before a search and not left out since is found, in every thread."""
    with closing(MemoryStore()) as store:
        filled(store, texts[:300], vectors[:300])
        found = NearestQuestions(store, "default", most=10_000, index="usearch", ann_threshold=200)
        found.catch_up()
        done = threading.Event()

        def ask(seed: int) -> int:
            rng, asked = np.random.default_rng(seed), 0
            while not done.is_set() or asked < 50:
                place = int(rng.integers(300))
                near = names(found.find(vectors[place], scope="s", encoder="m"))
                assert (near[0] == texts[place]) or place < 100
                asked += 1
            return asked

        with ThreadPoolExecutor(4) as pool:
            asking = [pool.submit(ask, seed) for seed in range(4)]
            try:
                for start in range(300, 1_200, 30):
                    filled(store, texts[start:start + 30], vectors[start:start + 30])
                    found.catch_up()
                    found.forget([f"entry-default-s-{text}" for text in texts[(start - 300) // 9:(start - 270) // 9]])
            finally:
                done.set()
            assert sum(each.result() for each in asking) >= 200


def test_the_same_answers_are_served_with_an_index_and_without(texts: list[str], eager: None, tmp_path: Path) -> None:
    """Whole caches on one store, on real vectors, calibrated: the decisions are the same."""
    url = f"sqlite:///{tmp_path / 'c.db'}"
    limits: dict[str, Any] = {"max_error": 0.5, "confidence": 0.5, "audit_rate": 0.01}
    log = [{"question": text, "answer": text.split()[0]} for text in texts[:1_000]]
    with SemanticCache(store=url, settings=CacheSettings(index="exact", **limits), seed=0) as plain:
        plain.calibrate(log, scope="s", judge=lambda *_: True)
        one = [hit and (hit.kind, hit.question) for hit in plain.lookup_many(texts[1_000:1_300], scope="s")]
    with SemanticCache(store=url, settings=CacheSettings(index="usearch", ann_threshold=500, **limits),
                       seed=0) as quick:
        quick.explain("anything", "s")
        quick._semantic._nearest.wait(WAIT_SECONDS)
        (shelf,) = quick._semantic._nearest._shelves.values()
        assert shelf.index is not None
        other = [hit and (hit.kind, hit.question) for hit in quick.lookup_many(texts[1_000:1_300], scope="s")]

    assert sum(hit is not None for hit in one) > 100
    assert np.mean([a == b for a, b in zip(one, other, strict=True)]) >= 0.99


# where usearch is missing


def test_who_insists_on_usearch_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approximate, "is_installed", lambda: False)
    with pytest.raises(MissingExtraError, match=r"usearch is not installed; run: pip install 'neuralcache-plugins"):
        SemanticCache(HashingEncoder(), store="memory://", settings=CacheSettings(index="usearch"))


def test_who_does_not_goes_on_one_by_one_and_reads_a_hint_once(texts: list[str], vectors: np.ndarray, eager: None,
                                                               monkeypatch: pytest.MonkeyPatch,
                                                               caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(approximate, "is_installed", lambda: False)
    with closing(MemoryStore()) as store, caplog.at_level(logging.WARNING):
        found = NearestQuestions(store, "default", most=10_000, index="auto", ann_threshold=100)
        for start in (0, 200, 400):
            filled(store, texts[start:start + 200], vectors[start:start + 200])
            found.catch_up()
        assert names(found.find(vectors[7], scope="s", encoder="m"))[0] == texts[7]
    (told,) = [record.getMessage() for record in caplog.records]
    assert "pip install 'neuralcache-plugins[usearch]'" in told


def test_an_index_that_is_being_built_is_given_up_when_the_cache_closes(texts: list[str], vectors: np.ndarray,
                                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    asked = threading.Event()

    def slow(rows: Any, *, before: Any, stopped: Any) -> None:
        asked.set()
        while not stopped():
            threading.Event().wait(0.005)

    monkeypatch.setattr(approximate.Approximate, "over", slow)
    with closing(MemoryStore()) as store:
        filled(store, texts[:600], vectors[:600])
        found = NearestQuestions(store, "default", most=10_000, index="usearch", ann_threshold=100)
        found.catch_up()
        assert asked.wait(WAIT_SECONDS)
        assert names(found.find(vectors[7], scope="s", encoder="m"))[0] == texts[7]
        found.close()
        found.wait(WAIT_SECONDS)
        assert not found._builder.busy


def test_an_index_that_cannot_be_built_is_tried_once_and_told_once(texts: list[str], vectors: np.ndarray, eager: None,
                                                                   monkeypatch: pytest.MonkeyPatch,
                                                                   caplog: pytest.LogCaptureFixture) -> None:
    tried = []

    def fails(rows: Any, **_: Any) -> None:
        tried.append(len(rows))
        raise MemoryError("no room")

    monkeypatch.setattr(approximate.Approximate, "over", fails)
    with closing(MemoryStore()) as store:
        found = NearestQuestions(store, "default", most=10_000, index="usearch", ann_threshold=100)
        for start in (0, 200, 400):
            filled(store, texts[start:start + 200], vectors[start:start + 200])
            found.catch_up()
            found.wait(WAIT_SECONDS)
        assert names(found.find(vectors[7], scope="s", encoder="m"))[0] == texts[7]
    assert tried == [200]
    assert [record.getMessage() for record in caplog.records] == [
        "no index can be built, answers are searched one by one"]
