"""The reranking's own place in LangChain's run tree.

LangChain knows no run type for rerankers, and a plain compressor is invisible to tracers. A run of type retriever
is what they can show: question in, documents out.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from langchain_core.callbacks import AsyncCallbackManager, BaseCallbackManager, CallbackManager, Callbacks
from langchain_core.documents import Document

from neuralcache_plugins.contracts import Ranking

RUN_NAME = "neuralcache_rerank"
EVENT_NAME = "neuralcache_ranking"
_OWN_METADATA = {"ls_retriever_name": "neuralcache"}  # else the surrounding retriever's name would be inherited


@dataclass(slots=True)
class RerankRun:
    """One reranking as tracers see it. ``trace`` is what the telemetry store records to join the two."""

    trace: dict[str, str] | None = None
    documents: Sequence[Document] = ()
    event: dict[str, Any] = field(default_factory=dict)

    def finished(self, documents: Sequence[Document], ranking: Ranking) -> None:
        """Note what the run's end will report."""
        self.documents = documents
        self.event = {
            "ranking_id": ranking.ranking_id,
            "namespace": ranking.namespace,
            "degraded": list(ranking.degraded),
        }


@contextmanager
def rerank_run(callbacks: Callbacks, query: str) -> Iterator[RerankRun]:
    """Open a child run if anybody listens; the custom event ``neuralcache_ranking`` tells the ranking's id."""
    if not _anybody_listens(callbacks):
        yield RerankRun(_trace(callbacks))
        return
    manager = CallbackManager.configure(callbacks, local_metadata=_OWN_METADATA)
    started = manager.on_retriever_start(None, query, name=RUN_NAME)
    run = RerankRun(_trace(manager, str(started.run_id)))
    try:
        yield run
    except BaseException as error:
        started.on_retriever_error(error)
        raise
    manager.on_custom_event(EVENT_NAME, run.event, run_id=started.run_id)
    started.on_retriever_end(run.documents)


@asynccontextmanager
async def arerank_run(callbacks: Callbacks, query: str) -> AsyncIterator[RerankRun]:
    """Do as ``rerank_run`` does, awaiting the handlers."""
    if not _anybody_listens(callbacks):
        yield RerankRun(_trace(callbacks))
        return
    manager = AsyncCallbackManager.configure(callbacks, local_metadata=_OWN_METADATA)
    started = await manager.on_retriever_start(None, query, name=RUN_NAME)
    run = RerankRun(_trace(manager, str(started.run_id)))
    try:
        yield run
    except BaseException as error:
        await started.on_retriever_error(error)
        raise
    await manager.on_custom_event(EVENT_NAME, run.event, run_id=started.run_id)
    await started.on_retriever_end(run.documents)


def _anybody_listens(callbacks: Callbacks) -> bool:
    return bool(callbacks if isinstance(callbacks, list) else callbacks and callbacks.handlers)


def _trace(callbacks: Callbacks, run_id: str | None = None) -> dict[str, str] | None:
    """Return the ids of this run, its parent and its root, as far as they are known."""
    if callbacks is None or isinstance(callbacks, list):
        return None
    parent = str(callbacks.parent_run_id) if callbacks.parent_run_id else None
    ids = {"run_id": run_id, "parent_run_id": parent, "trace_id": _root(callbacks, run_id or parent)}
    return {name: value for name, value in ids.items() if value} or None


def _root(manager: BaseCallbackManager, run_id: str | None) -> str | None:
    """Return the root run's id, which only tracers keep."""
    for handler in manager.handlers:
        run = getattr(handler, "run_map", {}).get(run_id)
        if run is not None:
            return str(run.trace_id)
    return None
