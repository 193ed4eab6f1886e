"""What turns texts into vectors, and what judges them: users bring their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from neuralcache_plugins.contracts.arrays import Matrix, Vector


@runtime_checkable
class Encoder(Protocol):
    """Turns texts into vectors; every LangChain ``Embeddings`` is one.

    Twins ``aembed_documents`` and ``aembed_query`` are awaited by the async methods where they exist, and
    ``embed_queries(texts)`` saves calls in batches. An attribute ``fingerprint: str`` overrides the identity that is
    otherwise made of class, model name and width.
    """

    def embed_documents(self, texts: list[str]) -> Sequence[Sequence[float]] | Matrix:
        """Return one vector per text, all of one width."""

    def embed_query(self, text: str) -> Sequence[float] | Vector:
        """Return the vector of a question."""


class PairScorer(Protocol):
    """An expensive judge of (query, text) pairs, such as a cross-encoder. Higher is better."""

    def __call__(self, query: str, texts: Sequence[str], /) -> Sequence[float]:
        """Return one finite score per text."""
