"""What is known of a text without an encoder: its words and its id, kept while it keeps coming back."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import cast

from neuralcache_plugins.core.lexical import TokenStatistics, token_statistics


class TextCache:
    """Token statistics and content ids of recent texts. Bounded; the least recently used goes."""

    def __init__(self, *, hash_key: bytes, capacity: int) -> None:
        self._hash_key = hash_key
        self._capacity = capacity
        self._lock = threading.Lock()
        self._statistics: OrderedDict[str, TokenStatistics] = OrderedDict()

    def statistics(self, texts: Sequence[str]) -> list[TokenStatistics]:
        """Return one object per text; a text seen lately costs a look-up."""
        with self._lock:
            known = self._statistics
            found = list(map(known.get, texts))
            if 2 * len(known) > self._capacity:  # nobody is about to go while there is plenty of room
                for text, one in zip(texts, found, strict=True):
                    if one is not None:
                        known.move_to_end(text)
        if all(found):
            return cast("list[TokenStatistics]", found)
        return [one or self._learn(text) for text, one in zip(texts, found, strict=True)]

    def key(self, text: str) -> str:
        """Return the keyed hash of a text: not to be reversed without the store's key."""
        data = text.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(data, key=self._hash_key, digest_size=16).hexdigest()

    def restart_after_fork(self) -> None:
        """Take a new lock in a forked child: another thread of the parent may have held the old one."""
        self._lock = threading.Lock()

    def forget(self) -> None:
        """Empty the cache."""
        with self._lock:
            self._statistics.clear()

    def _learn(self, text: str) -> TokenStatistics:
        statistics = token_statistics(text)
        with self._lock:
            self._statistics[text] = statistics
            while len(self._statistics) > self._capacity:
                self._statistics.popitem(last=False)
        return statistics
