"""The package at work on real text: ``python -m neuralcache_plugins demo``.

The documents are the documentation of Python's own standard library. Everything that is shown is computed on the spot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager

import numpy as np
from rich.console import Console
from rich.progress import Progress

from neuralcache_plugins.contracts import Encoder, Erasure, Matrix, TelemetryStore
from neuralcache_plugins.demo.caching import answer_again
from neuralcache_plugins.demo.conversation import talk
from neuralcache_plugins.demo.corpus import Page, Shelf, read_pages, sources
from neuralcache_plugins.demo.ending import end
from neuralcache_plugins.demo.frameworks import LangChainPipeline, LlamaIndexPipeline, Parts, load_frameworks
from neuralcache_plugins.demo.story import Cast, tell
from neuralcache_plugins.encoders import LocalEncoder
from neuralcache_plugins.settings import RerankSettings, default_store_url
from neuralcache_plugins.stores import open_store

__all__ = ["NAMESPACE", "build_shelf", "default_demo_url", "run"]

NAMESPACE = "demo"
BATCH = 256


def default_demo_url() -> str:
    """Return the URL of the demo's own SQLite file, beside the default telemetry file."""
    folder, _, _ = default_store_url().rpartition("/")
    return f"{folder}/demo.db"


def run(
    console: Console,
    *,
    store: str | None = None,
    keep: bool = False,
    interactive: bool = False,
    pages: Sequence[Page] | None = None,
) -> None:
    """Play the demo, or with ``interactive`` answer a person's questions until an empty line.

    ``store`` is a URL; what lies there stays. None is the demo's own file, which starts empty unless ``keep``.
    ``pages`` replace the standard library's documentation.
    """
    console.print("[bold]neuralcache-plugins: a reranker that learns and a cache that keeps its word[/bold]")
    with console.status("loading LangChain and LlamaIndex"):
        load_frameworks()
    encoder = LocalEncoder()
    shelf = build_shelf(console, encoder, pages)
    url = store or default_demo_url()
    with _cast(console, shelf, encoder, url, fresh=store is None and not keep) as (cast, opened):
        if interactive:
            talk(console, cast.langchain, shelf)
        else:
            tell(console, cast)
            answer_again(console, cast, encoder=encoder, store=opened, namespace=NAMESPACE)
        for pipeline in (cast.langchain, cast.llamaindex):
            pipeline.reranker.flush()
        end(console, cast.langchain.reranker, url=url, here=f"--store {url}" if store else "--keep")


def build_shelf(console: Console, encoder: Encoder, pages: Sequence[Page] | None = None) -> Shelf:
    """Read and encode the pages (None: the standard library's), with a progress bar on a terminal."""
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        stock = list(_read(progress) if pages is None else pages)
        shelf = Shelf(stock, _encode(progress, encoder, stock), encoder)
    console.print(f"{len(stock)} pages of documentation read and turned into vectors on this machine.")
    return shelf


def _read(progress: Progress) -> list[Page]:
    return list(read_pages(progress.track(sources(), description="reading the standard library")))


def _encode(progress: Progress, encoder: Encoder, stock: Sequence[Page]) -> Matrix:
    starts = range(0, len(stock), BATCH)
    rows = [
        np.asarray(encoder.embed_documents([page.text for page in stock[start : start + BATCH]]), dtype=np.float32)
        for start in progress.track(starts, description="encoding")
    ]
    return np.nan_to_num(np.concatenate(rows))


@contextmanager
def _cast(
    console: Console, shelf: Shelf, encoder: Encoder, url: str, *, fresh: bool
) -> Iterator[tuple[Cast, TelemetryStore]]:
    """Open the store and both pipelines on it, and one pipeline that never learns, for comparison."""
    with ExitStack() as stack:
        store = stack.enter_context(closing(open_store(url)))
        if fresh:
            store.erase(Erasure(namespace=NAMESPACE))
        nowhere = stack.enter_context(closing(open_store("memory://")))
        parts = Parts(shelf, encoder, store, NAMESPACE, RerankSettings())
        cold = parts._replace(store=nowhere, settings=RerankSettings(learning=False))
        cast = Cast(shelf, LangChainPipeline(parts), LlamaIndexPipeline(parts), LangChainPipeline(cold))
        for pipeline in (cast.langchain, cast.llamaindex, cast.cold):
            stack.callback(pipeline.close)
        yield cast, store
