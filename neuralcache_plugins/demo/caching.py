"""The act about the cache: a log of questions, a certificate that fills up, then rewordings and near misses.

The log is made from the documentation on the spot: each question is the first sentence of a page in other words, and
its answer is that page. What the cache does with it, and with what is asked afterwards, is not known in advance.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from rich.console import Console

from neuralcache_plugins.contracts import Encoder, TelemetryStore
from neuralcache_plugins.demo.corpus import Page
from neuralcache_plugins.demo.frameworks import Pipeline
from neuralcache_plugins.demo.story import Cast, table_of
from neuralcache_plugins.semantic_cache import Explanation, SemanticCache
from neuralcache_plugins.settings import CacheSettings

MAX_ERROR = 0.05
PAGES, WAYS, ROW = 100, 4, 50
"""So many pages are asked for, each in so many ways; the table has a row for so many questions."""

PHRASES = ("how do I {}?", "{}", "I want to {}", "is there something to {}", "which function can {}?",
           "please help me {}")

VERBS = frozenset(re.findall(r"\w+", """
    add append apply build call change check close compare compute convert copy create decode delete determine disable
    display enable encode execute extract find format generate get insert join list load make merge move open parse pop
    print read register release remove replace reset restore return run save search send set sort split start stop store
    test transform update wait walk wrap write
"""))


class Trial(NamedTuple):
    """A question, the same in other words, and one that looks alike and is another."""

    question: str
    reworded: str
    near_miss: str


TRIALS = (
    Trial("How do I enable automatic garbage collection?", "what can I do to enable automatic garbage collection",
          "How do I disable automatic garbage collection?"),
    Trial("get the smallest five numbers from a long list", "what will get the smallest five numbers from a long list?",
          "get the smallest ten numbers from a long list"),
    Trial("open a web page in the Firefox browser", "how can I open a web page in the Firefox browser?",
          "open a web page in the Safari browser"),
)


def answer_again(console: Console, cast: Cast, *, encoder: Encoder, store: TelemetryStore, namespace: str) -> None:
    """Play the log through a cache, then ask again in other words, and ask what only looks the same."""
    console.rule("4. The cache: answered before, in other words", align="left")
    scope = {"corpus": "standard library", "python": sys.version.split()[0], "pages": len(cast.shelf.pages)}
    settings = CacheSettings(max_error=MAX_ERROR)
    with SemanticCache(encoder, store=store, namespace=namespace, settings=settings, seed=0) as cache:
        _play(console, cache, questions(cast.shelf.pages), scope)
        _try(console, cache, cast.langchain, scope)


def questions(stock: Sequence[Page], *, pages: int = PAGES, ways: int = WAYS, seed: int = 0) -> list[tuple[str, str]]:
    """Return a log, shuffled: questions and the names of the pages that answer them. Equal pages give an equal log."""
    rng = np.random.default_rng(seed)
    told = _sentences(stock)
    chosen = [told[place] for place in rng.permutation(len(told))[:pages].tolist()]
    log = [(asked, page.name) for sentence, page in chosen for asked in _ways(sentence, ways, rng)]
    return [log[place] for place in rng.permutation(len(log)).tolist()]


def _sentences(stock: Sequence[Page]) -> list[tuple[str, Page]]:
    """Return the first sentences that say what a page does, and that no other page begins with."""
    found: dict[str, list[Page]] = {}
    for page in stock:
        sentence = re.split(r"(?<=[.!?])\s|\s>>>", page.text.partition("\n")[2])[0].rstrip(".")
        verb, _, rest = sentence.partition(" ")
        plain = sentence.isascii() and not re.search(r"[<>=(){}\[\]_`*\\|]", sentence)
        if plain and verb.lower() in VERBS and 4 <= len(rest.split()) <= 13:
            found.setdefault(f"{verb.lower()} {rest}", []).append(page)
    return [(sentence, pages[0]) for sentence, pages in found.items() if len(pages) == 1]


def _ways(sentence: str, ways: int, rng: np.random.Generator) -> Iterator[str]:
    for phrase in rng.permutation(len(PHRASES))[:ways].tolist():
        terse = re.sub(r"\b(?:the|a|an) ", "", sentence)
        yield PHRASES[phrase].format(terse if rng.random() < 0.5 else sentence)


def _play(console: Console, cache: SemanticCache, log: Sequence[tuple[str, str]], scope: dict[str, object]) -> None:
    console.print(f"A log of {len(log)} questions, made from the first sentences of {len({page for _, page in log})} "
                  f'pages, such as "{log[0][0]}". The right page is known, so every answer can be checked. '
                  "The cache starts with exact repeats only. A similar question's answer is reused once tests have "
                  f"shown that at most {100 * MAX_ERROR:.0f} % of such answers are wrong.")
    table = table_of("asked", "exact", "similar", "wrong", "certificate")
    exact = similar = wrong = 0
    for done, (asked, page) in enumerate(log, 1):
        hit = cache.lookup(asked, scope=scope)
        if hit is None:
            cache.put(asked, page, scope=scope)  # and compare it with the answer that came nearest: a test
            cache.flush()  # a log has no pauses: what was judged counts from the next question on, in every run
        else:
            exact, similar, wrong = (exact + (hit.kind == "exact"), similar + (hit.kind == "semantic"),
                                     wrong + (hit.value != page))
        if done % ROW == 0 or done == len(log):
            certificate = cache.certificate()
            said = f"rule {certificate.rule} of {certificate.rules}" if certificate.live else (
                f"not yet, {certificate.judged} judged")
            table.add_row(str(done), str(exact), str(similar), str(wrong), said)
    console.print(table)
    console.print(f"{cache.certificate()}.\n", markup=False)


def _try(console: Console, cache: SemanticCache, pipeline: Pipeline, scope: dict[str, object]) -> None:
    console.print("Now questions that are in no log. What the cache does not have, the pipeline above answers.\n")
    again = mistaken = 0
    told: list[Explanation] = []
    for trial in TRIALS:
        for role, asked in (("first", trial.question), ("again", trial.reworded), ("other", trial.near_miss)):
            told.append(cache.explain(asked, scope))
            answer, computed = _ask(cache, pipeline, asked, scope)
            again += role == "again" and not computed
            mistaken += role == "other" and not computed and told[-1].kind == "semantic"
            console.print(f"  {role}: {asked}", markup=False, soft_wrap=True)
            console.print(f"         {answer}, from the {'pipeline' if computed else 'cache'}: {_why(told[-1], role)}",
                          markup=False, soft_wrap=True)
    console.print(f"\nOf {len(TRIALS)} rewordings, {again} were answered from the cache; of {len(TRIALS)} questions "
                  f"that only look the same, {mistaken} got another question's answer. cache.explain() says more:\n")
    console.print(str(told[2]), markup=False, soft_wrap=True)
    console.print("\nThe certificate holds for questions like those of this log, which repeat a sentence in other "
                  "words. Yours earn their own, from their own answers.\n")


def _ask(cache: SemanticCache, pipeline: Pipeline, question: str, scope: dict[str, object]) -> tuple[str, bool]:
    """Return the answer, and whether it had to be computed."""
    before = cache.stats().computed
    answer = cache.get_or_compute(question, lambda: pipeline.ask(question)[0], scope=scope)
    return answer, cache.stats().computed > before


def _why(told: Explanation, role: str) -> str:
    if told.hit:
        return "asked before" if told.kind == "exact" else f"similar, right with probability {told.score or 0.0:.2f}"
    other = next((reason for reason in told.reasons if reason.startswith("other ")), None)
    return other if role == "other" and other is not None else told.reasons[0]
