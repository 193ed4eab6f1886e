"""What tests of several files share.

Hypothesis: new examples at every run by hand, the same ones in CI; no deadlines, because machines are shared.
"""

import os

import pytest
from hypothesis import settings

from neuralcache_plugins.reranker import Reranker
from neuralcache_plugins.testing import HashingEncoder

settings.register_profile("by-hand", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "by-hand")


@pytest.fixture(params=["sync", "async"])
def call(request):
    """Call a method, or await its twin with an "a" before the name."""

    async def invoke(owner, method, *args, **kwargs):
        if request.param == "sync":
            return getattr(owner, method)(*args, **kwargs)
        return await getattr(owner, f"a{method}")(*args, **kwargs)

    return invoke


class Spy:
    """Passes everything on to a real core and remembers what was asked."""

    def __init__(self, core):
        self.core = core
        self.asked = []

    def __getattr__(self, name):
        return getattr(self.core, name)

    def rerank(self, query, texts, **options):
        self.asked.append({"texts": list(texts), **options})
        return self.core.rerank(query, texts, **options)

    async def arerank(self, query, texts, **options):
        self.asked.append({"texts": list(texts), **options})
        return await self.core.arerank(query, texts, **options)


@pytest.fixture
def spy():
    with Reranker(HashingEncoder(), store="memory://") as core:
        yield Spy(core)
