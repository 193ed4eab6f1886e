"""The same retrieval pipeline twice: in LangChain and in LlamaIndex, each with its NeuralCache adapter.

Both pipelines search one ``Shelf``, write to one store and learn in one namespace, so each knows what the other was
told.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from neuralcache_plugins.contracts import Encoder, Ranking, TelemetryStore
from neuralcache_plugins.demo.corpus import Shelf
from neuralcache_plugins.reranker import Reranker
from neuralcache_plugins.settings import RerankSettings

if TYPE_CHECKING:
    from langchain_core.retrievers import BaseRetriever as LangChainRetriever
    from llama_index.core.retrievers import BaseRetriever as LlamaIndexRetriever

CANDIDATES = 30
SHOWN = 10


class Pipeline(Protocol):
    """What the demo asks of a framework."""

    name: str

    def ask(self, question: str) -> list[str]:
        """Retrieve and rerank the framework's own way; return the names of the pages shown, best first."""

    def rank(self, question: str) -> Ranking:
        """Do the same and return the ranking itself, with all its signals."""

    def feedback(self, ranking: Ranking, *, helpful: Sequence[str], unhelpful: Sequence[str] = ()) -> None:
        """Tell which of the pages shown helped."""

    @property
    def reranker(self) -> Reranker:
        """The core behind the adapter."""

    def close(self) -> None:
        """Write what is buffered; the store stays open."""


class Parts(NamedTuple):
    """What both pipelines share."""

    shelf: Shelf
    encoder: Encoder
    store: TelemetryStore
    namespace: str
    settings: RerankSettings


def load_frameworks() -> None:
    """Import both adapters; ``MissingExtraError`` says how to install what is missing."""
    import_module("neuralcache_plugins.langchain")
    import_module("neuralcache_plugins.llamaindex")


def langchain_retriever(shelf: Shelf, count: int = CANDIDATES) -> LangChainRetriever:
    """Return a LangChain retriever over the shelf; its cosines lie in the metadata under ``retrieval_score``."""
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever

    class ShelfRetriever(BaseRetriever):
        def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
            return [
                Document(id=page.name, page_content=page.text, metadata={"retrieval_score": cosine})
                for page, cosine in shelf.search(query, count)
            ]

    return ShelfRetriever()


def llamaindex_retriever(shelf: Shelf, count: int = CANDIDATES) -> LlamaIndexRetriever:
    """Return a LlamaIndex retriever over the shelf; its cosines are the nodes' scores."""
    from llama_index.core.retrievers import BaseRetriever
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

    class ShelfRetriever(BaseRetriever):
        def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
            return [
                NodeWithScore(node=TextNode(id_=page.name, text=page.text), score=cosine)
                for page, cosine in shelf.search(query_bundle.query_str, count)
            ]

    return ShelfRetriever()


class LangChainPipeline:
    """``NeuralCacheRetriever`` around the shelf's retriever."""

    name = "LangChain"

    def __init__(self, parts: Parts) -> None:
        from neuralcache_plugins.langchain import NeuralCacheCompressor, NeuralCacheRetriever

        self._retriever = langchain_retriever(parts.shelf)
        self._compressor = NeuralCacheCompressor(
            embeddings=parts.encoder, store=parts.store, namespace=parts.namespace, settings=parts.settings,
            top_n=SHOWN, retrieval_score_key="retrieval_score")
        self._pipeline = NeuralCacheRetriever(base_retriever=self._retriever, compressor=self._compressor)

    def ask(self, question: str) -> list[str]:
        """Return the ids of the documents of ``retriever.invoke(question)``."""
        return [document.id or "" for document in self._pipeline.invoke(question)]

    def rank(self, question: str) -> Ranking:
        """Return the compressor's ranking of what the base retriever finds."""
        return self._compressor.rank(self._retriever.invoke(question), question)

    def feedback(self, ranking: Ranking, *, helpful: Sequence[str], unhelpful: Sequence[str] = ()) -> None:
        """Call ``compressor.feedback``."""
        self._compressor.feedback(ranking, helpful=helpful, unhelpful=unhelpful)

    @property
    def reranker(self) -> Reranker:
        """Return ``compressor.reranker``."""
        return self._compressor.reranker

    def close(self) -> None:
        """Close the compressor; the store stays open."""
        self._compressor.close()


class LlamaIndexPipeline:
    """``NeuralCachePostprocessor`` behind the shelf's retriever."""

    name = "LlamaIndex"

    def __init__(self, parts: Parts) -> None:
        from neuralcache_plugins.llamaindex import NeuralCachePostprocessor

        self._retriever = llamaindex_retriever(parts.shelf)
        self._postprocessor = NeuralCachePostprocessor(
            embed_model=parts.encoder, store=parts.store, namespace=parts.namespace, settings=parts.settings,
            top_n=SHOWN)

    def ask(self, question: str) -> list[str]:
        """Return the ids of the nodes that come out of ``postprocess_nodes``."""
        nodes = self._retriever.retrieve(question)
        return [found.node.node_id for found in self._postprocessor.postprocess_nodes(nodes, query_str=question)]

    def rank(self, question: str) -> Ranking:
        """Return the postprocessor's ranking of what the retriever finds."""
        return self._postprocessor.rank(self._retriever.retrieve(question), question)

    def feedback(self, ranking: Ranking, *, helpful: Sequence[str], unhelpful: Sequence[str] = ()) -> None:
        """Call ``postprocessor.feedback``."""
        self._postprocessor.feedback(ranking, helpful=helpful, unhelpful=unhelpful)

    @property
    def reranker(self) -> Reranker:
        """Return ``postprocessor.reranker``."""
        return self._postprocessor.reranker

    def close(self) -> None:
        """Close the postprocessor; the store stays open."""
        self._postprocessor.close()
