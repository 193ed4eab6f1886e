"""The embedding cache asks an encoder only for what nobody has seen."""

import asyncio
import sys

import numpy as np
import pytest

from neuralcache_plugins.encoders import EncoderCache, LocalEncoder
from neuralcache_plugins.errors import DimensionMismatchError, EncoderError, MissingExtraError, StoreError
from neuralcache_plugins.stores.memory import MemoryStore
from neuralcache_plugins.testing import FailingStore, HashingEncoder

WIDTH = 32


class Counting(HashingEncoder):
    """Remembers which texts it was asked for."""

    def __init__(self, width=WIDTH):
        super().__init__(width)
        self.asked = []

    def embed_documents(self, texts):
        self.asked.append(list(texts))
        return super().embed_documents(texts)


def cache_of(encoder, store, *, in_memory=1000):
    def keep(namespace, fingerprint, rows):
        store.put_vectors(namespace, fingerprint, rows, at=0.0, max_rows=1000)

    return EncoderCache(encoder, store=store, hash_key=store.hash_key(), in_memory=in_memory, on_disk=1000, keep=keep)


def encode(cache, texts, namespace="default"):
    return cache.documents(texts, ids=[f"id-{text}" for text in texts], width=WIDTH, namespace=namespace)


def test_a_hundred_known_texts_cost_no_encoder_call():
    encoder = Counting()
    cache = cache_of(encoder, MemoryStore())
    texts = [f"text number {i}" for i in range(100)]

    first = encode(cache, texts)
    again = encode(cache, texts)

    assert len(encoder.asked) == 1
    assert again.rows.tolist() == first.rows.tolist()


def test_another_process_finds_the_vectors_in_the_store():
    store, encoder = MemoryStore(), Counting()
    encode(cache_of(encoder, store), ["a b", "c d"])

    fresh = encode(cache_of(encoder, store), ["c d", "e f", "a b"])

    assert encoder.asked == [["a b", "c d"], ["e f"]]
    assert fresh.rows[2] == pytest.approx(np.array(encoder._embed("a b")), abs=1e-3)


def test_a_repeated_text_is_encoded_once_and_lands_in_every_place():
    encoder = Counting()

    rows = encode(cache_of(encoder, MemoryStore()), ["x", "y", "x"]).rows

    assert encoder.asked == [["x", "y"]]
    assert rows[0].tolist() == rows[2].tolist()


def test_encoders_of_other_models_or_widths_never_share_vectors():
    store, one, two = MemoryStore(), Counting(), Counting()
    two_name = type("Other", (Counting,), {"fingerprint": "other"})()
    encode(cache_of(one, store), ["a"])

    encode(cache_of(two, store), ["a"])
    encode(cache_of(two_name, store), ["a"])

    assert two.asked == []
    assert two_name.asked == [["a"]]


def test_namespaces_never_share_vectors():
    store, encoder = MemoryStore(), Counting()
    cache = cache_of(encoder, store)

    encode(cache, ["a"], namespace="one")
    encode(cache, ["a"], namespace="two")

    assert encoder.asked == [["a"], ["a"]]


def test_the_memory_is_bounded_and_the_store_steps_in():
    encoder = Counting()
    cache = cache_of(encoder, MemoryStore(), in_memory=3)

    encode(cache, [f"t {i}" for i in range(20)])
    encode(cache, [f"t {i}" for i in range(20)])

    assert len(encoder.asked) == 1
    assert len(cache._known) == 3


def test_a_store_in_trouble_only_costs_the_cache():
    encoder, store = Counting(), FailingStore(MemoryStore())
    cache = EncoderCache(encoder, store=store, hash_key=b"k", in_memory=10, on_disk=0, keep=lambda *_: None)
    store.fail(StoreError("down"))

    assert encode(cache, ["a"]).unusable == []


def test_a_text_without_direction_is_named_and_not_cached():
    store = MemoryStore()
    encoded = encode(cache_of(Counting(), store), ["word", "", "!!!"])

    assert encoded.unusable == [1, 2]
    assert store.health()["rows"]["vectors"] == 1


@pytest.mark.parametrize("returned", [[[1.0] * WIDTH], [[1.0] * 5, [1.0] * 5], "nonsense", None, [["a"], ["b"]]])
def test_an_encoder_that_returns_something_else_is_an_encoder_error(returned):
    encoder = Counting()
    encoder.embed_documents = lambda texts: returned

    with pytest.raises((EncoderError, DimensionMismatchError)):
        encode(cache_of(encoder, MemoryStore()), ["a", "b"])


def test_whatever_an_encoder_raises_is_an_encoder_error_that_names_it():
    encoder = Counting()

    def refuse(texts):
        raise ConnectionError("no route")

    encoder.embed_documents = refuse
    with pytest.raises(EncoderError, match="no route"):
        encode(cache_of(encoder, MemoryStore()), ["a"])


async def test_an_async_twin_is_awaited_and_a_slow_one_times_out():
    class Native(Counting):
        async def aembed_query(self, text):
            await asyncio.sleep(0)
            return self._embed(text)

        async def aembed_documents(self, texts):
            await asyncio.sleep(30)

    cache = cache_of(Native(), MemoryStore())

    assert np.linalg.norm(await cache.aquestion("hello", namespace="default")) == pytest.approx(1.0)
    with pytest.raises(EncoderError):
        await cache.adocuments(["a"], ids=["a"], width=WIDTH, namespace="default", timeout_seconds=0.01)


async def test_an_encoder_without_twins_runs_beside_the_loop():
    encoder = Counting()
    cache = cache_of(encoder, MemoryStore())

    encoded = await cache.adocuments(["a", "b"], ids=["a", "b"], width=WIDTH, namespace="default")

    assert encoder.asked == [["a", "b"]]
    assert encoded.unusable == []


def test_the_local_encoder_knows_paraphrases_from_strangers_and_survives_any_text():
    local = LocalEncoder()
    rows = local.embed_documents(
        ["how do I reset my password", "resetting a password", "opening hours", "\ud800 broken"]
    )

    assert rows.shape == (4, 256)
    assert rows[0] @ rows[1] > rows[0] @ rows[2] + 0.2
    assert np.isfinite(rows[3]).all()
    assert not np.isfinite(local.embed_query("")).any()


def test_a_missing_local_encoder_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "wordllama", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'neuralcache-plugins\[local\]'"):
        LocalEncoder().embed_query("hello")
