"""Whatever can reorder documents, behind one call: from candidates to positions, best first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from neuralcache_plugins.contracts import PairScorer
from neuralcache_plugins.errors import InvalidInputError
from neuralcache_plugins.reranker import Reranker

INPUT = "input order"
"""The name of the order that came from the first stage, which everything is compared with."""

_PLACE = "neuralcache_evaluation_place"


@dataclass(frozen=True, slots=True)
class Candidates:
    """One question and what the first stage found for it, best first."""

    query: str
    ids: tuple[str, ...]
    texts: tuple[str, ...]
    scores: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.ids)


Contender: TypeAlias = Callable[[Candidates], Sequence[int]]
"""Returns positions into the candidates, best first; may leave some out."""


def contenders(rerankers: Mapping[str, Any] | Sequence[Any]) -> dict[str, Contender]:
    """Return contenders by name, the input order first; things without a name are named after their kind."""
    named = dict(rerankers) if isinstance(rerankers, Mapping) else _named(rerankers)
    ready: dict[str, Contender] = {INPUT: _as_found}
    for name, thing in named.items():
        if name != INPUT:
            ready[name] = contender(thing, name=name)
        elif not _is_input(thing):
            raise InvalidInputError(f"{INPUT!r} is the name of the first stage's own order; choose another")
    return ready


def contender(thing: Any, *, name: str = "reranker") -> Contender:
    """Return what reorders candidates as ``thing`` does.

    ``thing`` is a ``Reranker``, a LangChain document compressor, a LlamaIndex node postprocessor, any callable
    ``(query, texts) -> positions``, or None for the input order. A callable may leave candidates out.
    """
    if _is_input(thing):
        return _as_found
    if isinstance(thing, Reranker):
        return _by_reranker(thing)
    # a class has these methods as well, but nobody to call them on
    if not isinstance(thing, type):
        if hasattr(thing, "compress_documents"):
            return _by_compressor(thing, name)
        if hasattr(thing, "postprocess_nodes"):
            return _by_postprocessor(thing, name)
        if callable(thing):
            return _by_function(thing, name)
    raise InvalidInputError(
        f"{name} must be a Reranker, a LangChain compressor, a LlamaIndex postprocessor, a callable (query, texts) -> "
        f"positions, or None for the input order; got {thing!r}"
    )


def by_score(scorer: PairScorer) -> Callable[[str, Sequence[str]], list[int]]:
    """Return a callable for ``evaluate`` from a judge of (query, texts), such as a cross-encoder.

    Ties keep the input order.
    """

    def order(query: str, texts: Sequence[str]) -> list[int]:
        scores = [float(score) for score in scorer(query, texts)]
        return sorted(range(len(scores)), key=lambda place: -scores[place])

    return order


def _named(rerankers: Sequence[Any]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for thing in rerankers:
        name = INPUT if _is_input(thing) else _name_of(thing)
        if name in named:
            raise InvalidInputError(f"two rerankers are called {name!r}: pass a mapping of name to reranker")
        named[name] = thing
    return named


def _name_of(thing: Any) -> str:
    own = getattr(thing, "__name__", None)
    return own if isinstance(own, str) else type(thing).__name__


def _is_input(thing: Any) -> bool:
    return thing is None or (isinstance(thing, str) and thing in ("input", INPUT))


def _as_found(candidates: Candidates) -> Sequence[int]:
    return range(len(candidates))


def _by_reranker(reranker: Reranker) -> Contender:
    def order(candidates: Candidates) -> list[int]:
        ranking = reranker.rerank(
            candidates.query, candidates.texts, ids=candidates.ids, prior_scores=candidates.scores
        )
        positions: list[int] = ranking.positions.tolist()
        return positions

    return order


def _by_compressor(compressor: Any, name: str) -> Contender:
    from langchain_core.documents import Document

    def order(candidates: Candidates) -> list[int]:
        found = zip(candidates.ids, candidates.texts, candidates.scores, strict=True)
        documents = [
            Document(id=one, page_content=text, metadata={"relevance_score": score, _PLACE: place})
            for place, (one, text, score) in enumerate(found)
        ]
        place_of = {one: place for place, one in enumerate(candidates.ids)}
        kept = compressor.compress_documents(documents, candidates.query)
        places = (document.metadata.get(_PLACE, place_of.get(document.id or "")) for document in kept)
        return _checked(places, candidates, name)

    return order


def _by_postprocessor(postprocessor: Any, name: str) -> Contender:
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

    def order(candidates: Candidates) -> list[int]:
        nodes = [
            NodeWithScore(node=TextNode(id_=one, text=text), score=score)
            for one, text, score in zip(candidates.ids, candidates.texts, candidates.scores, strict=True)
        ]
        place_of = {one: place for place, one in enumerate(candidates.ids)}
        kept = postprocessor.postprocess_nodes(nodes, query_bundle=QueryBundle(candidates.query))
        return _checked((place_of.get(node.node.node_id) for node in kept), candidates, name)

    return order


def _by_function(function: Callable[[str, list[str]], Iterable[int]], name: str) -> Contender:
    def order(candidates: Candidates) -> list[int]:
        return _checked(function(candidates.query, list(candidates.texts)), candidates, name)

    return order


def _checked(places: Iterable[Any], candidates: Candidates, name: str) -> list[int]:
    try:
        order = [int(place) for place in places]
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"{name} must return positions of documents that it was given: {error}") from error
    if len(set(order)) != len(order) or any(not 0 <= place < len(candidates) for place in order):
        raise InvalidInputError(
            f"{name} must return each position in 0..{len(candidates) - 1} at most once, got {order[:20]} "
            f"for {candidates.query!r}"
        )
    return order
