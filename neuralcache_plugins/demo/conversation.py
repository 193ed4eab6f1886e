"""A person asks, looks and says yes or no."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console

from neuralcache_plugins.contracts import Ranking
from neuralcache_plugins.demo.corpus import Shelf
from neuralcache_plugins.demo.frameworks import Pipeline
from neuralcache_plugins.demo.story import TOP, explained, trust

JUDGED = 3


def talk(console: Console, pipeline: Pipeline, shelf: Shelf, *, read: Callable[[str], str] | None = None) -> None:
    """Answer questions and take feedback until an empty line, the end of the input or Ctrl-C."""
    listen = console.input if read is None else read
    texts = {page.name: page.text for page in shelf.pages}
    console.print(f"Ask about Python's standard library; judge the first {JUDGED} pages with y or n, Enter skips. "
                  "Ask again in "
                  "other words and see them move: trust in learning is earned by several helpful answers."
                  " An empty line ends.\n")
    try:
        while question := listen("question: ").strip():
            ranking = pipeline.rank(question)
            _show(console, ranking, texts)
            _judge(console, pipeline, ranking, listen)
    except (EOFError, KeyboardInterrupt):
        console.print()


def _show(console: Console, ranking: Ranking, texts: dict[str, str]) -> None:
    for rank, (name, position) in enumerate(zip(ranking.ids, ranking.positions.tolist(), strict=True), 1):
        if rank > TOP:
            break
        console.print(f"{rank}. {name} (retriever: {position + 1})", markup=False, style="bold")
        summary = texts[name].partition("\n")[2]
        console.print(f"   {summary}", markup=False, no_wrap=True, overflow="ellipsis")
    console.print(explained(ranking, TOP), markup=False, soft_wrap=True, style="dim")


def _judge(console: Console, pipeline: Pipeline, ranking: Ranking, listen: Callable[[str], str]) -> None:
    helpful: list[str] = []
    unhelpful: list[str] = []
    for name in ranking.ids[:JUDGED]:
        answer = listen(f"did {name} help? [y/n] ").strip().lower()
        if answer.startswith("y"):
            helpful.append(name)
            break
        if answer.startswith("n"):
            unhelpful.append(name)
    if helpful or unhelpful:
        pipeline.feedback(ranking, helpful=helpful, unhelpful=unhelpful)
        console.print(f"Noted. Trust in learning: {trust(pipeline):.2f} (counts from 0.5 on)\n")
