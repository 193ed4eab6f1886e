"""The reranker as a LangChain document compressor."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeAlias, TypedDict

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from pydantic import ConfigDict, Field, PrivateAttr, SecretStr, field_validator

from neuralcache_plugins.contracts import Encoder, Ranking, TelemetryStore
from neuralcache_plugins.errors import InvalidInputError
from neuralcache_plugins.langchain.call_options import CallOptions
from neuralcache_plugins.langchain.documents import (
    chosen_copy,
    document_id,
    document_ids,
    document_vectors,
    prior_score,
    prior_scores,
)
from neuralcache_plugins.langchain.engine import Engine, successor
from neuralcache_plugins.langchain.run_tree import RUN_NAME, arerank_run, rerank_run
from neuralcache_plugins.reranker import Reranker
from neuralcache_plugins.settings import RerankSettings

Shown: TypeAlias = str | int | Document
"""Names a shown document in feedback: its id, its position in the list handed in, or the document itself."""

_REPLACING = threading.Lock()


class RerankInput(TypedDict):
    """What ``NeuralCacheCompressor.as_runnable()`` takes."""

    query: str
    documents: Sequence[Document]


class NeuralCacheCompressor(BaseDocumentCompressor):
    """Reranks retrieved documents and learns from feedback which of them help which questions.

    ::

        compressor = NeuralCacheCompressor(embeddings=embeddings, top_n=5)
        retriever = ContextualCompressionRetriever(base_compressor=compressor, base_retriever=vector_store_retriever)
        documents = retriever.invoke("How do I reset my password?")
        compressor.feedback(query="How do I reset my password?", helpful=[documents[0]])

    Returned documents are copies with a score in [0, 1] under ``score_key``; they keep id, class, state and metadata.
    A document without an id gets one made of its text. A transformer behind the compressor that drops ids makes such
    documents unrecognisable for feedback: name a metadata key with ``id_key``, because metadata survives.

    For one call, run metadata or ``configurable`` may give ``session_id`` (or ``thread_id``), ``namespace`` and
    ``top_n``: ``retriever.invoke(question, config={"metadata": {"session_id": "42"}})``.

    Thread-safe. Nothing is opened, written or downloaded before the first use. ``close()``, or leaving it as a
    context manager, writes what is still buffered.
    """

    # a misspelt option may hold a password: errors name the option, not its value
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, hide_input_in_errors=True)

    embeddings: Encoder | None = Field(
        default=None, repr=False, exclude=True,
        description="any LangChain embeddings; None: the local encoder of the extra 'local'")
    store: TelemetryStore | SecretStr | str | None = Field(
        default=None, repr=False, exclude=True,
        description="telemetry store or its URL; None: NEURALCACHE_STORE_URL, else a file in the user's data folder")
    namespace: str = Field(default="default", min_length=1, description="tenant: nothing learned crosses it")
    top_n: int | None = Field(default=3, ge=1, description="documents returned; None: all")
    score_threshold: float | None = Field(
        default=None, ge=0, le=1, description="documents that score below it are left out"
    )
    score_key: str = Field(default="relevance_score", description="metadata key of the score on returned documents")
    id_key: str | Callable[[Document], str | None] | None = Field(
        default=None,
        description="metadata key, or function of the document, that identifies it; None: Document.id, else its text")
    use_document_vectors: bool = Field(
        default=False, description='use vectors in state["embedded_doc"], which must come from the same embeddings')
    retrieval_score_key: str | None = Field(
        default=None,
        description="metadata key of the retriever's score (higher is better), kept there on returned documents; "
                    "None or absent: what lies under score_key, else the retriever's order")
    ranking_id_key: str | None = Field(
        default=None, description="metadata key for the ranking's id; None: it is not added (it differs on every call)")
    settings: RerankSettings | None = Field(default=None, description="how to rank and learn; None: the environment's")

    _engine: Engine = PrivateAttr()

    @field_validator("store", mode="before")
    @classmethod
    def _hide_password(cls, store: Any) -> Any:
        return SecretStr(store) if isinstance(store, str) else store

    def model_post_init(self, context: Any, /) -> None:
        """Prepare the core without making it."""
        self._engine = Engine(self.embeddings, self.store, self.settings, self.namespace)

    @classmethod
    def from_reranker(cls, reranker: Reranker, **fields: Any) -> Self:
        """Return a compressor around an existing core, which stays its owner's to close.

        ``fields`` are those of the class but ``embeddings``, ``store`` and ``settings``, which the core has already.
        """
        if doubled := sorted({"embeddings", "store", "settings"} & fields.keys()):
            raise InvalidInputError(f"{', '.join(doubled)}: given by the Reranker, cannot be given again")
        compressor = cls(**{"namespace": reranker.namespace, **fields})
        compressor._engine = Engine(None, None, None, compressor.namespace, adopted=reranker)
        return compressor

    @property
    def reranker(self) -> Reranker:
        """The core behind this compressor, for ``stats()``, ``forget()`` and ``flush()``; made on first use."""
        parts, engine = (self.embeddings, self.store, self.settings), self._engine
        if not engine.suits(*parts):
            with _REPLACING:
                engine = self._engine
                if not engine.suits(*parts):
                    engine = self._engine = successor(engine, *parts, self.namespace)
        return engine.reranker()

    def compress_documents(self, documents: Sequence[Document], query: str,
                           callbacks: Callbacks | None = None) -> list[Document]:
        """Return copies of the best documents, best first, with their scores."""
        return self.compress_with(CallOptions.current(callbacks), documents, query)

    async def acompress_documents(self, documents: Sequence[Document], query: str,
                                  callbacks: Callbacks | None = None) -> list[Document]:
        """Do as ``compress_documents`` does, awaiting asynchronous embeddings."""
        return await self.acompress_with(CallOptions.current(callbacks), documents, query)

    def compress_with(self, call: CallOptions, documents: Sequence[Document], query: str) -> list[Document]:
        """Compress with options that are already known; for ``NeuralCacheRetriever``."""
        if not documents:
            return []
        with rerank_run(call.callbacks, query) as run:
            ranking = self.reranker.rerank(query, **self._request(documents, call), trace=run.trace)
            chosen = self._chosen(documents, ranking)
            run.finished(chosen, ranking)
        return chosen

    async def acompress_with(self, call: CallOptions, documents: Sequence[Document], query: str) -> list[Document]:
        """Do as ``compress_with`` does, awaiting asynchronous embeddings."""
        if not documents:
            return []
        async with arerank_run(call.callbacks, query) as run:
            ranking = await self.reranker.arerank(query, **self._request(documents, call), trace=run.trace)
            chosen = self._chosen(documents, ranking)
            run.finished(chosen, ranking)
        return chosen

    def rank(self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None) -> Ranking:
        """Return the ranking itself: positions into ``documents``, scores, signals, ``explain()``.

        Within a run it is announced as ``compress_documents`` is, so that handlers and tracers see it.
        """
        call = CallOptions.current(callbacks)
        if not documents:
            return self.reranker.rerank(query, **self._request(documents, call))
        with rerank_run(call.callbacks, query) as run:
            ranking = self.reranker.rerank(query, **self._request(documents, call), trace=run.trace)
            run.finished([documents[position] for position in ranking.positions.tolist()], ranking)
        return ranking

    async def arank(self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None) -> Ranking:
        """Do as ``rank`` does, awaiting asynchronous embeddings."""
        call = CallOptions.current(callbacks)
        if not documents:
            return await self.reranker.arerank(query, **self._request(documents, call))
        async with arerank_run(call.callbacks, query) as run:
            ranking = await self.reranker.arerank(query, **self._request(documents, call), trace=run.trace)
            run.finished([documents[position] for position in ranking.positions.tolist()], ranking)
        return ranking

    def feedback(self, ranking: Ranking | str | None = None, *, query: str | None = None,
                 helpful: Shown | Iterable[Shown] = (), unhelpful: Shown | Iterable[Shown] = (),
                 rewards: Mapping[str | int, float] | Iterable[tuple[Shown, float]] | None = None,
                 value: float | None = None, used: Mapping[str, float] | None = None, answer: Any = None,
                 source: str = "user", feedback_id: str | None = None, namespace: str | None = None) -> str:
        """Tell which shown documents helped; durable on return. Returns the feedback's id.

        The ranking is named by itself, by its id, or by ``query`` alone (the latest ranking of that question).
        Documents are named by id, by position in the list that was handed in, or by themselves, as handed in or as
        returned; ``rewards`` (in [-1, 1]) may be pairs, because LangChain's documents cannot be keys. ``value`` judges
        the answer instead (``Reranker.feedback``).
        """
        return self.reranker.feedback(
            ranking, query=query, helpful=self._keys(helpful), unhelpful=self._keys(unhelpful),
            rewards=self._rewards(rewards), value=value, used=used, answer=answer, source=source,
            feedback_id=feedback_id, namespace=self._feedback_namespace(ranking, namespace))

    async def afeedback(self, ranking: Ranking | str | None = None, *, query: str | None = None,
                        helpful: Shown | Iterable[Shown] = (), unhelpful: Shown | Iterable[Shown] = (),
                        rewards: Mapping[str | int, float] | Iterable[tuple[Shown, float]] | None = None,
                        value: float | None = None, used: Mapping[str, float] | None = None, answer: Any = None,
                        source: str = "user", feedback_id: str | None = None, namespace: str | None = None) -> str:
        """Do as ``feedback`` does, without blocking the event loop."""
        return await self.reranker.afeedback(
            ranking, query=query, helpful=self._keys(helpful), unhelpful=self._keys(unhelpful),
            rewards=self._rewards(rewards), value=value, used=used, answer=answer, source=source,
            feedback_id=feedback_id, namespace=self._feedback_namespace(ranking, namespace))

    def as_runnable(self) -> Runnable[RerankInput, list[Document]]:
        """Return a runnable for chains: ``{"query": str, "documents": [...]}`` in, reranked documents out."""

        def compress(given: RerankInput, config: RunnableConfig) -> list[Document]:
            return self.compress_documents(*_arguments(given), callbacks=config.get("callbacks"))

        async def acompress(given: RerankInput, config: RunnableConfig) -> list[Document]:
            return await self.acompress_documents(*_arguments(given), callbacks=config.get("callbacks"))

        return RunnableLambda(compress, afunc=acompress, name=RUN_NAME)

    def close(self) -> None:
        """Write what is buffered and release the store; a core from ``from_reranker`` stays open."""
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self.close()

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        # encoders and stores hold locks and connections; all other fields are immutable
        return self.model_copy()

    def _request(self, documents: Sequence[Document], call: CallOptions) -> dict[str, Any]:
        """Return the core's arguments for these documents."""
        return {
            "texts": [document.page_content for document in documents],
            "ids": document_ids(documents, self.id_key),
            "top_n": call.top_n if call.top_n is not None else self.top_n,
            "vectors": document_vectors(documents) if self.use_document_vectors else None,
            "prior_scores": prior_scores(documents, self._prior_keys()),
            "min_score": self.score_threshold,
            "session": call.session,
            "namespace": call.namespace or self.namespace,
        }

    def _prior_keys(self) -> tuple[str, ...]:
        return (self.retrieval_score_key, self.score_key) if self.retrieval_score_key else (self.score_key,)

    def _chosen(self, documents: Sequence[Document], ranking: Ranking) -> list[Document]:
        """Return copies of the chosen documents alone: copying all candidates would cost more than ranking them."""
        chosen = [documents[position] for position in ranking.positions.tolist()]
        return [
            chosen_copy(one, resolved_id, additions)
            for one, resolved_id, additions in zip(chosen, ranking.ids, self._additions(chosen, ranking), strict=True)
        ]

    def _additions(self, chosen: Sequence[Document], ranking: Ranking) -> list[dict[str, Any]]:
        score_key, kept, ranking_id_key = self.score_key, self.retrieval_score_key, self.ranking_id_key
        added: list[dict[str, Any]] = [{score_key: score} for score in ranking.scores]
        if kept is not None:
            for one, additions in zip(chosen, added, strict=True):
                if kept not in one.metadata and (found := prior_score(one, (score_key,))) is not None:
                    additions[kept] = found
        if ranking_id_key is not None:
            for additions in added:
                additions[ranking_id_key] = ranking.ranking_id
        return added

    def _keys(self, shown: Shown | Iterable[Shown]) -> list[str | int]:
        # a document and a str can be iterated over too, but nobody means their fields or letters
        return [self._key(one) for one in ([shown] if isinstance(shown, str | int | Document) else shown)]

    def _key(self, shown: Shown) -> str | int:
        if not isinstance(shown, Document):
            return shown
        return document_id(shown, self.id_key) or self.reranker.document_id(shown.page_content)

    def _rewards(self, rewards: Mapping[str | int, float] | Iterable[tuple[Shown, float]] | None
                 ) -> list[tuple[str | int, float]] | None:
        if rewards is None:
            return None
        pairs = rewards.items() if isinstance(rewards, Mapping) else rewards
        return [(self._key(shown), reward) for shown, reward in pairs]

    def _feedback_namespace(self, ranking: Ranking | str | None, given: str | None) -> str | None:
        """Return where to look for the ranking; a ranking at hand knows its own namespace."""
        if given is not None or isinstance(ranking, Ranking):
            return given
        return CallOptions.current().namespace or self.namespace


def _arguments(given: Any) -> tuple[Sequence[Document], str]:
    if not isinstance(given, Mapping) or not {"query", "documents"} <= given.keys():
        got = sorted(map(str, given)) if isinstance(given, Mapping) else type(given).__name__
        raise InvalidInputError(f'expected {{"query": str, "documents": [...]}}, got {got}')
    return given["documents"], given["query"]
