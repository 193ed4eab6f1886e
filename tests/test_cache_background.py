"""Work that nobody waits for is bounded, and ends with the cache."""

import threading

from neuralcache_plugins.semantic_cache.background import Background
from neuralcache_plugins.semantic_cache.counts import Counts


def test_what_comes_after_the_end_is_left_undone_and_counted():
    counts, done = Counts(), threading.Event()
    background = Background(counts)
    assert background.do(done.set)
    background.close(5.0)
    assert done.is_set()

    assert not background.do(done.set)
    assert counts.number("left_undone") == 1
