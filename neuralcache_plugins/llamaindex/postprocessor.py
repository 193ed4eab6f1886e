"""The node postprocessor: LlamaIndex's nodes on one side, the shared ``Reranker`` on the other."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeAlias

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.instrumentation.span import active_span_id
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle, TextNode
from pydantic import ConfigDict, Field, PrivateAttr, SecretStr, field_serializer, field_validator

from neuralcache_plugins.contracts import Encoder, Ranking, TelemetryStore
from neuralcache_plugins.errors import InvalidInputError
from neuralcache_plugins.llamaindex.encoder import EmbedModelEncoder
from neuralcache_plugins.reranker import Reranker
from neuralcache_plugins.settings import RerankSettings
from neuralcache_plugins.stores import mask

Shown: TypeAlias = str | int | NodeWithScore | BaseNode
"""A document in feedback: its node id, its position in the list that was reranked, or the node itself."""

MODEL_NAME = "neuralcache"
"""What ``ReRankStartEvent.model_name`` says."""

_MASK = "***"

dispatcher = get_dispatcher(__name__)


class NeuralCachePostprocessor(BaseNodePostprocessor):
    """Reranks retrieved nodes and learns from feedback which of them help which questions.

    ::

        postprocessor = NeuralCachePostprocessor(top_n=5)
        engine = index.as_query_engine(similarity_top_k=50, node_postprocessors=[postprocessor])
        response = engine.query("How do I reset my password?")
        postprocessor.feedback(query="How do I reset my password?", helpful=[response.source_nodes[0]])

    *Identity.* What is learned belongs to ``node_id``, so give nodes stable ids where documents are ingested again.

    *Question.* Ranking and learning use ``query_bundle.query_str`` alone. ``custom_embedding_strs`` (HyDE and
    other rewritten queries) are the retriever's business: a generated text differs from call to call, and what was
    learned for the question would not be found again. For the same reason ``query_bundle.embedding`` is used only
    with ``use_document_vectors=True`` and without ``custom_embedding_strs``.

    *Copies.* ``copy``, ``deepcopy`` and ``model_copy(update={"session": "...", "namespace": "..."})`` share the live
    reranker with their original, whatever fields differ but ``embed_model``, ``store`` and ``settings``: a copy per
    user is cheap, and closing one closes all. Pickling and ``to_dict`` carry the fields only;
    ``from_dict(data, store=..., embed_model=...)`` gives back what a dictionary cannot hold: a model, a URL's secret.

    *Observing.* Each call is one span with a ``ReRankStartEvent`` and a ``ReRankEndEvent``. The latter always
    follows, with no nodes when the call failed; its tags ``ranking_id`` and ``namespace`` name the ranking that
    feedback may refer to.
    """

    # a misspelt option may hold a password: errors name the option, not its value
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, hide_input_in_errors=True)

    embed_model: BaseEmbedding | Encoder | None = Field(
        default=None,
        repr=False,
        description="Embedding model, or any Encoder; None is this package's local one, never Settings.embed_model.",
    )
    store: TelemetryStore | SecretStr | str | None = Field(
        default=None, repr=False, description="Telemetry store or its URL; None is the configured default."
    )
    namespace: str = Field(default="default", min_length=1, description="Tenant: nothing learned crosses it.")
    top_n: int | None = Field(default=3, ge=1, description="Number of nodes to return; None returns all.")
    score_threshold: float | None = Field(
        default=None, ge=0, le=1, description="Return only nodes with a score of at least this."
    )
    metadata_mode: MetadataMode = Field(
        default=MetadataMode.NONE, description="Which metadata is part of the text that is ranked."
    )
    use_document_vectors: bool = Field(
        default=False,
        description="Use node.embedding and query_bundle.embedding; they must come from embed_model.",
    )
    session: str | None = Field(default=None, description="Conversation whose narrative counts.")
    ranking_id_key: str | None = Field(
        default=None,
        description="Metadata key of the ranking's id on returned nodes, which are copies then, and which no model "
        "reads; None: nodes are the caller's own, and only events tell the id.",
    )
    settings: RerankSettings | None = Field(default=None, description="How candidates are ordered and what is learned.")

    _live: _Live = PrivateAttr()

    @classmethod
    def class_name(cls) -> str:
        """Return the name that serialised components carry."""
        return "NeuralCachePostprocessor"

    @classmethod
    def from_reranker(cls, reranker: Reranker, **fields: Any) -> Self:
        """Wrap a reranker that exists already and stays its owner's to close.

        ``fields`` are those of the class but ``embed_model``, ``store`` and ``settings``, which are the reranker's.
        """
        if doubled := sorted({"embed_model", "store", "settings"} & fields.keys()):
            raise InvalidInputError(f"{', '.join(doubled)}: given by the Reranker, cannot be given again")
        made = cls(**{"namespace": reranker.namespace, **fields})
        made._live = _Live(made, adopted=reranker)
        return made

    def model_post_init(self, context: Any, /) -> None:
        """Prepare the live state; nothing is opened before the first ranking or feedback."""
        self._live = _Live(self)

    @property
    def reranker(self) -> Reranker:
        """The live core, for ``stats()``, ``forget()`` and ``flush()``; opened on first use."""
        live = self._live
        if not live.fits(self):
            with _REPLACING:
                live = self._live
                if not live.fits(self):
                    live = self._live = live.successor(self)
        return live.reranker()

    @dispatcher.span
    def rank(self, nodes: Sequence[NodeWithScore], query: str | QueryBundle) -> Ranking:
        """Rank nodes and return the core's result, with ``explain()`` and positions into ``nodes``.

        A span of its own with the events of ``postprocess_nodes``, so that handlers see it.
        """
        if not nodes:
            return self._ranked(nodes, query)
        with self._announced(nodes, QueryBundle(query) if isinstance(query, str) else query) as answer:
            ranking = self._ranked(nodes, query)
            answer.take(ranking)
        return ranking

    @dispatcher.span
    async def arank(self, nodes: Sequence[NodeWithScore], query: str | QueryBundle) -> Ranking:
        """Do what ``rank`` does, awaiting the embedding model."""
        if not nodes:
            return await self._aranked(nodes, query)
        with self._announced(nodes, QueryBundle(query) if isinstance(query, str) else query) as answer:
            ranking = await self._aranked(nodes, query)
            answer.take(ranking)
        return ranking

    def feedback(
        self,
        ranking: Ranking | str | None = None,
        *,
        query: str | QueryBundle | None = None,
        helpful: Shown | Iterable[Shown] = (),
        unhelpful: Shown | Iterable[Shown] = (),
        rewards: Mapping[str | int, float] | Iterable[tuple[Shown, float]] | None = None,
        value: float | None = None,
        used: Mapping[str, float] | None = None,
        answer: Any = None,
        source: str = "user",
        feedback_id: str | None = None,
        namespace: str | None = None,
    ) -> str:
        """Tell which shown nodes helped, or did not; return the feedback's id.

        The ranking is named by itself, by its id, or by ``query`` alone (the latest ranking of that question).
        Nodes are named by node id, by position in the list that was reranked, or by the node itself, such as one of
        ``response.source_nodes``; ``rewards`` also takes pairs, because nodes cannot be keys of a dictionary.
        ``value`` judges the answer instead (``Reranker.feedback``).
        """
        return self.reranker.feedback(
            ranking,
            **self._told(ranking, query, helpful, unhelpful, rewards, namespace),
            value=value,
            used=used,
            answer=answer,
            source=source,
            feedback_id=feedback_id,
        )

    async def afeedback(
        self,
        ranking: Ranking | str | None = None,
        *,
        query: str | QueryBundle | None = None,
        helpful: Shown | Iterable[Shown] = (),
        unhelpful: Shown | Iterable[Shown] = (),
        rewards: Mapping[str | int, float] | Iterable[tuple[Shown, float]] | None = None,
        value: float | None = None,
        used: Mapping[str, float] | None = None,
        answer: Any = None,
        source: str = "user",
        feedback_id: str | None = None,
        namespace: str | None = None,
    ) -> str:
        """Do what ``feedback`` does without blocking the event loop."""
        return await self.reranker.afeedback(
            ranking,
            **self._told(ranking, query, helpful, unhelpful, rewards, namespace),
            value=value,
            used=used,
            answer=answer,
            source=source,
            feedback_id=feedback_id,
        )

    def close(self) -> None:
        """Write what is buffered and release the store; a reranker from ``from_reranker`` stays open."""
        self._live.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise ValueError("Missing query bundle in extra info.")
        if not nodes:
            return []
        with self._announced(nodes, query_bundle) as answer:
            answer.take(self._ranked(nodes, query_bundle))
        return answer.nodes

    # the framework gives spans to implementations of abstract methods only; without one of its own the events below
    # would turn the caller's span into a reranker's
    @dispatcher.span
    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise ValueError("Missing query bundle in extra info.")
        if not nodes:
            return []
        with self._announced(nodes, query_bundle) as answer:
            answer.take(await self._aranked(nodes, query_bundle))
        return answer.nodes

    def _ranked(self, nodes: Sequence[NodeWithScore], query: str | QueryBundle) -> Ranking:
        return self.reranker.rerank(**self._question(nodes, query))

    async def _aranked(self, nodes: Sequence[NodeWithScore], query: str | QueryBundle) -> Ranking:
        return await self.reranker.arerank(**self._question(nodes, query))

    @contextmanager
    def _announced(self, nodes: Sequence[NodeWithScore], query_bundle: QueryBundle) -> Iterator[_Answer]:
        """Emit the start and end events, new style and legacy, around one ranking."""
        top_n = len(nodes) if self.top_n is None else self.top_n
        answer = _Answer(nodes, self.ranking_id_key)
        dispatcher.event(ReRankStartEvent(query=query_bundle, nodes=nodes, top_n=top_n, model_name=MODEL_NAME))
        try:
            with self.callback_manager.event(
                CBEventType.RERANKING,
                payload={
                    EventPayload.NODES: nodes,
                    EventPayload.MODEL_NAME: MODEL_NAME,
                    EventPayload.QUERY_STR: query_bundle.query_str,
                    EventPayload.TOP_K: top_n,
                },
            ) as event:
                yield answer
                event.on_end(payload={EventPayload.NODES: answer.nodes})
        finally:
            dispatcher.event(ReRankEndEvent(nodes=answer.nodes, tags=answer.tags))

    def _question(self, nodes: Sequence[NodeWithScore], query: str | QueryBundle) -> dict[str, Any]:
        """Return the core's arguments."""
        bundle = QueryBundle(query) if isinstance(query, str) else query
        inner = [item.node for item in nodes]
        question: dict[str, Any] = {
            "query": bundle.query_str,
            "texts": self._texts(inner),
            "ids": [node.node_id or None for node in inner],
            "prior_scores": [item.score for item in nodes],
            "top_n": self.top_n,
            "min_score": self.score_threshold,
            "session": self.session,
            "namespace": self.namespace,
        }
        if self.use_document_vectors:
            vectors = [node.embedding for node in inner]
            if any(vector is not None for vector in vectors):
                question["vectors"] = vectors
            if bundle.custom_embedding_strs is None:
                question["query_vector"] = bundle.embedding
        span_id = active_span_id.get()
        if span_id is not None:
            question["trace"] = {"span_id": span_id}
        return question

    def _told(
        self,
        ranking: Ranking | str | None,
        query: str | QueryBundle | None,
        helpful: Shown | Iterable[Shown],
        unhelpful: Shown | Iterable[Shown],
        rewards: Mapping[str | int, float] | Iterable[tuple[Shown, float]] | None,
        namespace: str | None,
    ) -> dict[str, Any]:
        """Return the core's arguments, with nodes replaced by their ids."""
        if namespace is None and not isinstance(ranking, Ranking):  # a ranking at hand knows its own
            namespace = self.namespace
        return {
            "query": query.query_str if isinstance(query, QueryBundle) else query,
            "helpful": self._named(helpful),
            "unhelpful": self._named(unhelpful),
            "rewards": None if rewards is None else self._rewards(rewards),
            "namespace": namespace,
        }

    def _named(self, shown: Shown | Iterable[Shown]) -> list[str | int]:
        # a model iterates over its fields and a string over its characters: neither is meant here
        if isinstance(shown, (str, int, NodeWithScore, BaseNode)):
            return [self._name(shown)]
        return [self._name(one) for one in shown]

    def _rewards(self, rewards: Mapping[str | int, float] | Iterable[tuple[Shown, float]]) -> dict[str | int, float]:
        pairs: Iterable[tuple[Shown, float]] = rewards.items() if isinstance(rewards, Mapping) else rewards
        named: dict[str | int, float] = {}
        for shown, reward in pairs:
            name = self._name(shown)
            if named.setdefault(name, reward) != reward:
                raise InvalidInputError(f"rewards has two values for {name!r}: {named[name]} and {reward}")
        return named

    def _name(self, shown: Shown) -> str | int:
        node = shown.node if isinstance(shown, NodeWithScore) else shown
        if not isinstance(node, BaseNode):
            return node
        return node.node_id or self.reranker.document_id(*self._texts([node]))

    def _texts(self, nodes: Iterable[BaseNode]) -> list[str]:
        mode = self.metadata_mode
        if mode is not MetadataMode.NONE:
            return [node.get_content(metadata_mode=mode) for node in nodes]
        # what get_content does for the usual class, at a fifth of its cost
        return [node.text if type(node) is TextNode else node.get_content(metadata_mode=mode) for node in nodes]

    @field_validator("embed_model", mode="before")
    @classmethod
    def _embed_model_itself(cls, value: Any) -> Any:
        if isinstance(value, dict):
            raise ValueError(f"a dictionary does not hold a model: use {cls.__name__}.from_dict(data, embed_model=...)")
        return value

    @field_validator("store", mode="before")
    @classmethod
    def _store_with_its_secret(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if _MASK in value:
            raise ValueError(f"the URL's secret is masked: use {cls.__name__}.from_dict(data, store=...)")
        return SecretStr(value)

    @field_serializer("embed_model")
    def _describe_embed_model(self, model: BaseEmbedding | Encoder | None) -> dict[str, str] | None:
        # never the model's own fields: they hold API keys
        described = self._live.adopted or model
        if described is None:
            return None
        name = str(getattr(described, "model_name", "unknown"))
        return {"class_name": type(described).__qualname__, "model_name": name}

    @field_serializer("store")
    def _describe_store(self, store: TelemetryStore | SecretStr | str | None) -> str | None:
        return None if store is None else _without_secret(_url(store))

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        # a second model or store would be another one: the copy would learn apart from its original
        return self.model_copy()

    def __getstate__(self) -> dict[Any, Any]:
        # not the framework's version: it drops what does not pickle, and the other side would silently go on with
        # the default model and the default store
        if self._live.adopted is not None:
            raise TypeError(
                "a postprocessor made by from_reranker() cannot be pickled, because its Reranker lives in this "
                "process; make one with embed_model= and store= instead"
            )
        state = {name: getattr(self, name) for name in type(self).model_fields if name != "callback_manager"}
        if self.store is not None and not isinstance(self.store, SecretStr):
            url = _url(self.store)
            if _MASK in url:
                raise TypeError(f"the open store {url} cannot be pickled; give the postprocessor its URL instead")
            state["store"] = url
        return state

    def __setstate__(self, state: dict[Any, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


class _Live:
    """The reranker behind a postprocessor and its copies, opened once on first use."""

    def __init__(self, owner: NeuralCachePostprocessor, *, adopted: Reranker | None = None) -> None:
        self._parts = (owner.embed_model, owner.store, owner.settings)
        self._namespace = owner.namespace
        self._opening = threading.Lock()
        self._reranker = adopted
        self.adopted = adopted

    def fits(self, owner: NeuralCachePostprocessor) -> bool:
        """Return whether the owner's fields are still those that this was made of."""
        model, store, settings = self._parts
        return owner.embed_model is model and owner.store is store and owner.settings is settings

    def successor(self, owner: NeuralCachePostprocessor) -> _Live:
        """Return what suits the owner's fields as they are now."""
        if self.adopted is not None:
            raise InvalidInputError(
                "embed_model, store and settings of a postprocessor made by from_reranker() are those of its Reranker "
                "and cannot be changed"
            )
        return _Live(owner)

    def reranker(self) -> Reranker:
        """Return the reranker; the first call opens it."""
        if self._reranker is None:
            with self._opening:
                if self._reranker is None:
                    self._reranker = self._open()
        return self._reranker

    def close(self) -> None:
        """Close the reranker if it was opened here."""
        with self._opening:
            if self._reranker is not None and self.adopted is None:
                self._reranker.close()

    def _open(self) -> Reranker:
        model, store, settings = self._parts
        encoder = EmbedModelEncoder(model) if isinstance(model, BaseEmbedding) else model
        place = store.get_secret_value() if isinstance(store, SecretStr) else store
        return Reranker(encoder, store=place, namespace=self._namespace, settings=settings)


class _Answer:
    """What one call returns, known to the end event even when the call fails half-way."""

    def __init__(self, given: Sequence[NodeWithScore], ranking_id_key: str | None) -> None:
        self._given = given
        self._ranking_id_key = ranking_id_key
        self.nodes: list[NodeWithScore] = []
        self.tags: dict[str, Any] = {}

    def take(self, ranking: Ranking) -> None:
        """Make new scored nodes around the caller's nodes, which stay untouched."""
        self.tags["ranking_id"] = ranking.ranking_id
        self.tags["namespace"] = ranking.namespace
        self.nodes = [
            NodeWithScore(node=self._node(position, ranking), score=score)
            for position, score in zip(ranking.positions.tolist(), ranking.scores, strict=True)
        ]

    def _node(self, position: int, ranking: Ranking) -> BaseNode:
        node, key = self._given[position].node, self._ranking_id_key
        if key is None:
            return node
        return node.model_copy(update={
            "metadata": {**node.metadata, key: ranking.ranking_id},
            # a text that differs at every call would defeat caches of prompts and of vectors
            "excluded_llm_metadata_keys": [*node.excluded_llm_metadata_keys, key],
            "excluded_embed_metadata_keys": [*node.excluded_embed_metadata_keys, key],
        })


_REPLACING = threading.Lock()


def _url(store: TelemetryStore | SecretStr | str) -> str:
    if isinstance(store, SecretStr):
        return store.get_secret_value()
    return store if isinstance(store, str) else store.url


def _without_secret(url: str) -> str:
    """Mask user, password and the values of options; the URL of a file has no such parts."""
    return url if url.startswith(("sqlite:///", "memory://")) else mask(url)
