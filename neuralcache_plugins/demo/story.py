"""The acts of the demo: ask, tell, ask differently, look behind. Nothing here is canned but the user's opinions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from neuralcache_plugins.contracts import Ranking
from neuralcache_plugins.demo.corpus import Shelf
from neuralcache_plugins.demo.frameworks import CANDIDATES, SHOWN, Pipeline

TOP = 5
"""Rows of a table; ``SHOWN`` pages are shown to the user of the pipeline."""
WIDEST = 100
"""Characters in a line of an explanation."""


class Topic(NamedTuple):
    """What the demo's user holds to be the right page, how people ask for it, and a way nobody has asked yet."""

    right: str
    asked: tuple[str, ...]
    unheard: str


class Cast(NamedTuple):
    """The pages, the two pipelines that learn together, and one that never learns."""

    shelf: Shelf
    langchain: Pipeline
    llamaindex: Pipeline
    cold: Pipeline


OPINIONS = (
    Topic("heapq.nsmallest",
          ("the three smallest numbers of a big list", "find the smallest few numbers in a list",
           "pick the smallest numbers of a large list", "the ten smallest values in a big list"),
          "get the smallest five numbers from a long list"),
    Topic("fnmatch.fnmatch",
          ("does a file name match a pattern with a star", "check a file name against a pattern like *.txt",
           "test a file name against a wildcard pattern", "file name matches a pattern with wildcards"),
          "see if a file name fits a wildcard pattern"),
    Topic("tempfile.TemporaryDirectory",
          ("create a folder that is deleted when I am done", "make a folder that is removed afterwards",
           "a temporary folder that is deleted automatically", "make a temporary folder that is removed at the end"),
          "temporary folder, deleted afterwards"),
    Topic("webbrowser.open",
          ("show a web page to the user", "open a web page in the browser", "let the user see a web page",
           "open a web page for the user"),
          "make a web page appear for the user"),
    Topic("random.Random.sample",
          ("draw a few random items from a list, each at most once", "choose several different items at random",
           "take some different items at random", "choose a few different people at random"),
          "pick a few different items at random"),
)

UNRELATED = "calendar of a year as text"



class Moved(NamedTuple):
    """A question, where its right page stood without learning (None: not among those shown), and the ranking now."""

    topic: Topic
    cold_rank: int | None
    ranking: Ranking

    @property
    def gain(self) -> int:
        """Ranks won; a page that was not shown counts as one rank behind the last."""
        return (self.cold_rank or SHOWN + 1) - (rank_of(self.topic.right, self.ranking.ids) or SHOWN + 1)


def tell(console: Console, cast: Cast) -> None:
    """Play all acts but the ending."""
    ask_first(console, cast, OPINIONS[0].asked[0])
    give_feedback(console, cast)
    explain(console, ask_differently(console, cast))
    ask_something_else(console, cast, UNRELATED)


def ask_first(console: Console, cast: Cast, question: str) -> None:
    """Show the retriever's order and what both frameworks make of it, side by side."""
    console.rule("1. A question", align="left")
    known = cast.langchain.reranker.stats().namespace.feedback
    console.print(f"This store remembers feedback given {known} times." if known else "Nothing was learned yet.")
    found = [page.name for page, _ in cast.shelf.search(question, CANDIDATES)]
    answers = [pipeline.ask(question) for pipeline in (cast.langchain, cast.llamaindex)]
    table = table_of("#", "retriever alone", cast.langchain.name, cast.llamaindex.name, title=f'"{question}"')
    for row in range(min(TOP, len(found))):
        table.add_row(str(row + 1), found[row], *(names[row] for names in answers))
    console.print(table)
    same = "the same order in both frameworks" if answers[0] == answers[1] else "the two frameworks DIFFER"
    moved = sum(before != after for before, after in zip(found, answers[0], strict=False))
    console.print(f"{len(found)} candidates, {len(answers[0])} shown: {same}; {moved} of the shown ranks differ from "
                  "the retriever's (words in common count, too).\n")


def give_feedback(console: Console, cast: Cast) -> None:
    """Let the demo's user ask in several ways and say each time which page helped, if it was shown."""
    console.rule("2. Feedback: the same needs in different words", align="left")
    console.print("The demo plays a user with five needs, who holds one page each to be right:")
    turns = _in_turn(cast.langchain, cast.llamaindex)
    for number, (topic, pipeline) in enumerate(zip(OPINIONS, turns, strict=True), 1):
        console.print(f"  {number}. {topic.right}, asked and told through {pipeline.name}")
    console.print("Learning starts with no say at all; its trust rises when it would have known the right page before "
                  "being told. Above 0.50 it counts.")
    table = table_of("need", "question", "rank", "trust")
    for turn in range(len(OPINIONS[0].asked)):
        for number, pipeline in enumerate(turns):
            topic = OPINIONS[number]
            table.add_row(str(number + 1), topic.asked[turn], _tell(pipeline, topic, turn), f"{trust(pipeline):.2f}")
    console.print(table)
    learned = cast.langchain.reranker.stats().namespace
    console.print(f'"rank" is where the right page stood; "-": not among the {SHOWN} shown, so nothing was said. '
                  f"Feedback {learned.feedback} times, {learned.remembered_questions} questions remembered.\n")


def ask_differently(console: Console, cast: Cast) -> list[Moved]:
    """Ask in words that nobody has used, each through the framework that was *not* told."""
    console.rule("3. New words, through the other framework", align="left")
    console.print("What one framework was told, the other knows: they share one store.")
    table = table_of("asked in", "a question never asked", "right page", "cold", "now")
    moves = []
    for topic, pipeline in zip(OPINIONS, _in_turn(cast.llamaindex, cast.langchain), strict=True):
        cold = rank_of(topic.right, cast.cold.ask(topic.unheard))
        moves.append(Moved(topic, cold, pipeline.rank(topic.unheard)))
        table.add_row(pipeline.name, topic.unheard, topic.right, _shown(cold),
                      _shown(rank_of(topic.right, moves[-1].ranking.ids)))
    console.print(table)
    up, down = sum(one.gain > 0 for one in moves), sum(one.gain < 0 for one in moves)
    console.print(f'"cold" is the rank without learning. Of {len(moves)} pages, {up} moved up, {down} moved down.\n')
    return moves


def explain(console: Console, moves: Sequence[Moved]) -> None:
    """Show the signals behind the question that moved most."""
    most = max(moves, key=lambda one: one.gain)
    if most.gain <= 0:
        console.print("No right page moved up: memory had nothing near enough to say, or has not earned trust yet.\n")
        return
    console.print(f'Why did {most.topic.right} move for "{most.topic.unheard}"? ranking.explain() says:\n')
    console.print(explained(most.ranking, 3), markup=False, soft_wrap=True)
    console.print('\n"was" is the rank in the retriever\'s list. "association": what helped for questions like this '
                  'one gains, the rest loses; the questions that did it stand below. "linear": which directions of a '
                  'question speak for a page.\n')


def ask_something_else(console: Console, cast: Cast, question: str) -> None:
    """Ask about something that no feedback was given for, which must stay as it was."""
    before, after = cast.cold.ask(question), cast.langchain.ask(question)
    verdict = f"all {len(after)} pages as without learning" if before == after else f"CHANGED, was {before[:TOP]}"
    console.print(f'An unrelated question, "{question}": {verdict} (first: {after[0]}).\n')


def rank_of(name: str, names: Sequence[str]) -> int | None:
    """Return the rank of a page among those shown, from 1, or None."""
    return names.index(name) + 1 if name in names else None


def trust(pipeline: Pipeline) -> float:
    """Return how much the pipeline's learning has earned, in [0, 1)."""
    return max(pipeline.reranker.stats().namespace.trust.values(), default=0.0)


def explained(ranking: Ranking, count: int) -> str:
    """Return ``explain()`` of the first ranks, of fewer where a long name would make the table too wide to read."""
    text = ranking.first(count).explain()
    header = text.splitlines()[1]
    return text if count == 1 or len(header) <= WIDEST else explained(ranking, count - 1)


def _in_turn(first: Pipeline, second: Pipeline) -> list[Pipeline]:
    return [first if number % 2 == 0 else second for number in range(len(OPINIONS))]


def _tell(pipeline: Pipeline, topic: Topic, turn: int) -> str:
    """Ask, tell which page helped if it was shown, and return its rank."""
    ranking = pipeline.rank(topic.asked[turn])
    rank = rank_of(topic.right, ranking.ids)
    if rank is not None:
        pipeline.feedback(ranking, helpful=[topic.right])
    return _shown(rank)


def _shown(rank: int | None) -> str:
    return "-" if rank is None else str(rank)


def table_of(*columns: str, title: str | None = None) -> Table:
    """Return an empty table that loses no rank on a narrow screen."""
    table = Table(*columns, title=title, title_justify="left", title_style="italic", box=box.SIMPLE_HEAD)
    for column in table.columns:
        header = str(column.header)
        column.overflow = "fold"
        column.no_wrap = len(header) <= 5  # ranks and the like, which nothing may squeeze
        column.min_width = len(header) if column.no_wrap else None
    return table
