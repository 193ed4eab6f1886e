"""Bare core, LangChain compressor and LlamaIndex postprocessor: one order and one set of scores for one input."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode

from neuralcache_plugins import Reranker
from neuralcache_plugins.langchain import NeuralCacheCompressor
from neuralcache_plugins.llamaindex import NeuralCachePostprocessor
from neuralcache_plugins.testing import HashingEncoder

Order = list[tuple[str | None, str, float]]

TEXTS = st.one_of(
    st.text(max_size=40),
    st.sampled_from(["", " ", "reset the password", "Reset THE password", "密码重置", "e\u0301te\u0301", "été"]),
)


@dataclass
class Candidates:
    query: str
    texts: list[str]
    ids: list[str]
    scores: list[float | None]


@st.composite
def candidates(draw: st.DrawFn) -> Candidates:
    texts = draw(st.lists(TEXTS, min_size=1, max_size=12))
    if draw(st.booleans()):
        texts += texts[:2]
    score = st.floats(-1, 1, width=32)
    scores = draw(
        st.one_of(
            st.just([None] * len(texts)),
            st.lists(score, min_size=len(texts), max_size=len(texts)),
            st.lists(st.one_of(st.none(), score), min_size=len(texts), max_size=len(texts)),
        )
    )
    ids = [f"d{i}" for i in range(len(texts))]
    if draw(st.booleans()):
        ids[-1] = ids[0]
    return Candidates(draw(TEXTS), texts, ids, scores)


class Core:
    def __init__(self, top_n: int | None) -> None:
        self.reranker = reranker()
        self.top_n = top_n

    def rank(self, given: Candidates) -> Order:
        return self._order(given, self.reranker.rerank(given.query, given.texts, **self._rest(given)))

    async def arank(self, given: Candidates) -> Order:
        return self._order(given, await self.reranker.arerank(given.query, given.texts, **self._rest(given)))

    def feedback(self, given: Candidates, **told: Any) -> None:
        self.reranker.feedback(query=given.query, **told)

    def _rest(self, given: Candidates) -> dict[str, Any]:
        return {"ids": given.ids, "prior_scores": given.scores, "top_n": self.top_n}

    @staticmethod
    def _order(given: Candidates, ranking) -> Order:
        return [(id_, given.texts[at], score)
                for id_, at, score in zip(ranking.ids, ranking.positions, ranking.scores, strict=True)]


class LangChain:
    def __init__(self, top_n: int | None) -> None:
        self.compressor = NeuralCacheCompressor.from_reranker(reranker(), top_n=top_n)

    def rank(self, given: Candidates) -> Order:
        return self._order(self.compressor.compress_documents(self._documents(given), given.query))

    async def arank(self, given: Candidates) -> Order:
        return self._order(await self.compressor.acompress_documents(self._documents(given), given.query))

    def feedback(self, given: Candidates, **told: Any) -> None:
        self.compressor.feedback(query=given.query, **told)

    @staticmethod
    def _documents(given: Candidates) -> list[Document]:
        return [
            Document(page_content=text, id=id_, metadata={} if score is None else {"relevance_score": score})
            for text, id_, score in zip(given.texts, given.ids, given.scores, strict=True)
        ]

    @staticmethod
    def _order(documents) -> Order:
        return [(document.id, document.page_content, document.metadata["relevance_score"]) for document in documents]


class LlamaIndex:
    def __init__(self, top_n: int | None) -> None:
        self.postprocessor = NeuralCachePostprocessor.from_reranker(reranker(), top_n=top_n)

    def rank(self, given: Candidates) -> Order:
        return self._order(self.postprocessor.postprocess_nodes(self._nodes(given), query_str=given.query))

    async def arank(self, given: Candidates) -> Order:
        return self._order(await self.postprocessor.apostprocess_nodes(self._nodes(given), query_str=given.query))

    def feedback(self, given: Candidates, **told: Any) -> None:
        self.postprocessor.feedback(query=given.query, **told)

    @staticmethod
    def _nodes(given: Candidates) -> list[NodeWithScore]:
        return [
            NodeWithScore(node=TextNode(text=text, id_=id_), score=score)
            for text, id_, score in zip(given.texts, given.ids, given.scores, strict=True)
        ]

    @staticmethod
    def _order(nodes: list[NodeWithScore]) -> Order:
        return [(node.node_id, node.node.get_content(), node.score) for node in nodes]


def reranker() -> Reranker:
    # one clock reading for all, so that scores can be compared exactly
    return Reranker(HashingEncoder(), store="memory://", clock=lambda: 1_750_000_000.0)


def close(*paths: Core | LangChain | LlamaIndex) -> None:
    for path in paths:
        getattr(path, "compressor", getattr(path, "postprocessor", path)).reranker.close()


@settings(max_examples=60, deadline=None)
@given(
    given=candidates(),
    top_n=st.one_of(st.none(), st.integers(1, 5)),
    which=st.integers(0, 20),
    reward=st.sampled_from([1.0, -1.0, 0.3]),
)
def test_one_order_before_and_after_the_same_feedback(given: Candidates, top_n, which, reward):
    paths = Core(top_n), LangChain(top_n), LlamaIndex(top_n)
    try:
        core, langchain, llamaindex = (path.rank(given) for path in paths)
        assert core == langchain == llamaindex
        assert len(core) == min(len(given.texts), top_n or len(given.texts))
        shown = core[which % len(core)][0]
        for _ in range(3):
            for path in paths:
                path.rank(given)
                path.feedback(given, rewards={shown: reward})
        core, langchain, llamaindex = (path.rank(given) for path in paths)
        assert core == langchain == llamaindex
    finally:
        close(*paths)


@settings(max_examples=20, deadline=None)
@given(given=candidates(), top_n=st.one_of(st.none(), st.integers(1, 5)))
def test_one_order_in_async(given: Candidates, top_n):
    async def all_of_them() -> list[Order]:
        return [await path.arank(given) for path in paths]

    paths = Core(top_n), LangChain(top_n), LlamaIndex(top_n)
    try:
        core, langchain, llamaindex = asyncio.run(all_of_them())
        assert core == langchain == llamaindex == paths[0].rank(given)
    finally:
        close(*paths)


def test_adapters_made_from_their_own_fields_agree_and_learn_alike():
    given = Candidates(
        query="how do I reset my password",
        texts=["Fees abroad", "Reset the password on the login page", "Interest rates", "A lost card", "Login code"],
        ids=["fees", "reset", "rates", "card", "login"],
        scores=[0.9, 0.8, 0.7, 0.6, None],
    )
    core, langchain, llamaindex = Core(3), LangChain(3), LlamaIndex(3)
    fields: dict[str, Any] = {"store": "memory://", "namespace": "default", "top_n": 3}
    close(langchain, llamaindex)
    langchain.compressor = NeuralCacheCompressor(embeddings=HashingEncoder(), **fields)
    llamaindex.postprocessor = NeuralCachePostprocessor(embed_model=HashingEncoder(), **fields)
    orders = []
    for path in (core, langchain, llamaindex):
        for _ in range(12):
            path.rank(given)
            path.feedback(given, helpful=[2])
        orders.append([id_ for id_, _, _ in path.rank(given)])
    assert orders[0] == orders[1] == orders[2]
    assert orders[0][0] == "rates"
    close(core, langchain, llamaindex)
