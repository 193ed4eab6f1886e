"""The cache of answers as LangChain's cache of model calls."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from langchain_core.caches import BaseCache
from langchain_core.outputs import Generation

from neuralcache_plugins.errors import StoreClosedError, StoreError
from neuralcache_plugins.langchain.prompts import FindQuestion, split_prompt
from neuralcache_plugins.langchain.serialisation import from_text, to_text
from neuralcache_plugins.semantic_cache import CacheHit, SemanticCache
from neuralcache_plugins.semantic_cache.judges import Judge, as_judge

_LOG = logging.getLogger(__name__)


class NeuralCacheLLMCache(BaseCache):
    """Answers model calls from a ``SemanticCache``, which stays its owner's to close.

    ::

        set_llm_cache(NeuralCacheLLMCache(SemanticCache(store="sqlite:///telemetry.db")))

    The question is the last human turn. The model with its parameters, the system message, the history, tools and
    pictures are the scope: they have to be equal. Where a prompt stuffs the retrieved context into the human turn,
    ``question`` finds the question inside of its text; the rest of it has to be equal too.

    All generations are kept, as LangChain serialises them; what would not come back equal is not kept. A store that
    fails never fails the model call. ``judge(cached, fresh) -> bool`` compares the texts of two generations for the
    certificate of similar questions; None overlooks case, punctuation and blanks. ``clear()`` removes everything in the
    cache's namespace, so give this one its own.
    """

    def __init__(self, cache: SemanticCache, *, question: FindQuestion = None,
                 judge: Callable[[Any, Any], bool] | None = None) -> None:
        self.cache = cache
        self._question = question
        self._judge = _on_generations(judge)

    def lookup(self, prompt: str, llm_string: str) -> list[Generation] | None:
        """Return the generations for a prompt, or None."""
        question, scope = self._place(prompt, llm_string)
        return _generations(self.cache.lookup(question, scope=scope))

    def update(self, prompt: str, llm_string: str, return_val: Sequence[Generation]) -> None:
        """Keep the generations for a prompt."""
        text = to_text(list(return_val))
        if text is None:
            return
        question, scope = self._place(prompt, llm_string)
        try:
            self.cache.put(question, text, scope=scope, judge=self._judge)
        except StoreError as error:
            _not_kept(error)

    def clear(self, **kwargs: Any) -> None:
        """Remove everything in the cache's namespace."""
        self.cache.clear()

    async def alookup(self, prompt: str, llm_string: str) -> list[Generation] | None:
        """Do what ``lookup`` does, without blocking the event loop."""
        question, scope = self._place(prompt, llm_string)
        return _generations(await self.cache.alookup(question, scope=scope))

    async def aupdate(self, prompt: str, llm_string: str, return_val: Sequence[Generation]) -> None:
        """Do what ``update`` does, without blocking the event loop."""
        text = to_text(list(return_val))
        if text is None:
            return
        question, scope = self._place(prompt, llm_string)
        try:
            await self.cache.aput(question, text, scope=scope, judge=self._judge)
        except StoreError as error:
            _not_kept(error)

    async def aclear(self, **kwargs: Any) -> None:
        """Do what ``clear`` does, without blocking the event loop."""
        await self.cache.aclear()

    def _place(self, prompt: str, llm_string: str) -> tuple[str, dict[str, str]]:
        question, rest = split_prompt(prompt, self._question)
        return question, {"kind": "langchain llm", "llm": llm_string, "rest": rest}


def _generations(hit: CacheHit | None) -> list[Generation] | None:
    if hit is None:
        return None
    try:
        found: list[Generation] = from_text(hit.value)
    except ValueError:
        return None  # somebody else's entry, or one of a class that is not allowed any more
    return found


def _on_generations(judge: Callable[[Any, Any], bool] | None) -> Judge:
    """Return a judge of generations as the cache keeps them; ids and token counts differ from call to call."""
    judged = as_judge(judge)

    def agrees(cached: str, fresh: str) -> bool:
        pairs = list(zip_longest(from_text(cached), from_text(fresh)))
        return all(None not in pair and _calls(pair[0]) == _calls(pair[1]) and judged(pair[0].text, pair[1].text)
                   for pair in pairs)

    return replace(judged, agrees=agrees)


def _calls(generation: Generation) -> list[tuple[str, Any]]:
    message = getattr(generation, "message", None)
    return [(call["name"], call["args"]) for call in getattr(message, "tool_calls", ())]


def _not_kept(error: StoreError) -> None:
    if isinstance(error, StoreClosedError):
        raise error
    _LOG.warning("an answer could not be cached: %s", error)
