"""Judges of two answers to one question: whether the cached one is as good as the fresh one.

A judge is any callable ``(cached, fresh) -> bool``. One that is sometimes wrong can say how often.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from neuralcache_plugins.contracts import Encoder
from neuralcache_plugins.core.vectors import unit_rows
from neuralcache_plugins.errors import InvalidInputError

__all__ = ["Judge", "as_judge", "embedding_agreement", "exact", "normalised_text"]


@dataclass(frozen=True, slots=True)
class Judge:
    """A judge with its name. ``error_rate`` is the share of wrong answers that it passes; ``quick`` ones are not made
    to wait for in the background.
    """

    agrees: Callable[[Any, Any], bool]
    name: str
    error_rate: float = 0.0
    quick: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.error_rate < 1.0:
            raise InvalidInputError(f"error_rate must be in [0, 1), got {self.error_rate}")

    def __call__(self, cached: Any, fresh: Any) -> bool:
        """Return whether the cached answer will do."""
        return bool(self.agrees(cached, fresh))


def exact() -> Judge:
    """Return a judge that wants equal answers."""
    return Judge(lambda cached, fresh: type(cached) is type(fresh) and cached == fresh, "exact", quick=True)


def normalised_text() -> Judge:
    """Return a judge that overlooks case, punctuation and blanks in texts, and wants anything else equal."""
    return Judge(_same_words, "normalised text", quick=True)


def embedding_agreement(encoder: Encoder, *, threshold: float = 0.9, error_rate: float = 0.0) -> Judge:
    """Return a judge that wants a cosine of at least ``threshold`` between the two texts. Two calls of the encoder.

    Vectors do not see a lost "not": declare an ``error_rate`` that was measured on pairs of your own.
    """
    if not -1.0 <= threshold <= 1.0:
        raise InvalidInputError(f"threshold must be in [-1, 1], got {threshold}")

    def agrees(cached: Any, fresh: Any) -> bool:
        if not isinstance(cached, str) or not isinstance(fresh, str):
            return bool(type(cached) is type(fresh) and cached == fresh)
        given = encoder.embed_documents([cached, fresh])
        rows, unusable = unit_rows(given, count=2, width=len(given[0]))
        return not unusable and float(np.dot(rows[0], rows[1])) >= threshold

    return Judge(agrees, f"embedding agreement of {threshold}", error_rate)


def as_judge(judge: Callable[[Any, Any], bool] | None) -> Judge:
    """Return any callable as a judge; None is the one of normalised texts, which errs towards "wrong"."""
    if judge is None:
        return normalised_text()
    return judge if isinstance(judge, Judge) else Judge(judge, getattr(judge, "__name__", type(judge).__name__))


def _same_words(cached: Any, fresh: Any) -> bool:
    if isinstance(cached, str) and isinstance(fresh, str):
        return _words(cached) == _words(fresh)
    return type(cached) is type(fresh) and bool(cached == fresh)


def _words(text: str) -> list[str]:
    # signs that carry meaning stay: -5 is not 5, and 3.5 is not 35
    return re.findall(r"[-+]?\d+(?:[.,]\d+)*%?|\w+|[^\w\s.,;:!?\"'()]", unicodedata.normalize("NFKC", text).casefold())
