"""Feedback through the LangChain compressor: it moves the document that it names, and no other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda

from neuralcache_plugins import UnknownDocumentError, UnknownRankingError
from neuralcache_plugins.langchain import NeuralCacheCompressor
from neuralcache_plugins.testing import HashingEncoder

QUESTION = "which card works abroad"
UNRELATED = "opening hours on sunday"
TEXTS = [
    "cards and where they work", "lost and stolen cards", "travelling abroad with money", "fees for cash machines",
    "opening hours on a sunday", "how to reach the branch office", "a card for children",
]


@pytest.fixture
def compressor():
    with NeuralCacheCompressor(embeddings=HashingEncoder(), store="memory://", top_n=None) as made:
        yield made


def documents(*, ids=True):
    return [Document(page_content=text, id=f"d{i}" if ids else None) for i, text in enumerate(TEXTS)]


def order(compressor, question=QUESTION, given=None):
    return [d.page_content for d in compressor.compress_documents(given or documents(), question)]


NAMES = {
    "id": lambda returned, position: returned.id,
    "position": lambda returned, position: position,
    "returned document": lambda returned, position: returned,
    "document handed in": lambda returned, position: documents()[position],
}


@pytest.mark.parametrize("name", NAMES)
async def test_feedback_moves_the_document_that_it_names_and_no_other(call, compressor, name):
    """By id, by position, by the returned copy or by the caller's own object; other questions stay as they are."""
    cold, unrelated = order(compressor), order(compressor, UNRELATED)
    position = TEXTS.index(cold[-1])

    for _ in range(12):
        ranking = await call(compressor, "rank", documents(), QUESTION)
        returned = next(d for d in compressor.compress_documents(documents(), QUESTION) if d.page_content == cold[-1])
        await call(compressor, "feedback", ranking, helpful=[NAMES[name](returned, position)])

    assert order(compressor) == [cold[-1], *cold[:-1]]
    assert order(compressor, UNRELATED) == unrelated


async def test_documents_without_ids_are_recognised_by_their_text(call, compressor):
    """The copy carries the id; the caller's own object is found by what it says."""
    given = documents(ids=False)
    cold = order(compressor, given=given)
    loser = next(d for d in given if d.page_content == cold[-1])

    for _ in range(12):
        found = await call(compressor, "compress_documents", given, QUESTION)
        await call(compressor, "feedback", query=QUESTION, helpful=[loser])
        copied = next(d for d in found if d.page_content == loser.page_content)
        await call(compressor, "feedback", query=QUESTION, helpful=[copied.id])

    assert order(compressor, given=given)[0] == cold[-1]
    assert order(compressor, given=given[::-1])[0] == cold[-1]


async def test_id_key_identifies_documents_in_feedback_too(call):
    """Metadata survives transformers that drop ids."""
    with NeuralCacheCompressor(embeddings=HashingEncoder(), store="memory://", id_key="key", top_n=None) as compressor:
        given = [Document(page_content=text, metadata={"key": i}) for i, text in enumerate(TEXTS)]
        cold = order(compressor, given=given)
        for _ in range(12):
            last = next(d for d in compressor.compress_documents(given, QUESTION) if d.page_content == cold[-1])
            stripped = Document(page_content=last.page_content + " (shortened)", metadata=last.metadata)
            await call(compressor, "feedback", query=QUESTION, helpful=[stripped])

        assert order(compressor, given=given)[0] == cold[-1]


async def test_rewards_are_a_mapping_or_pairs(call, compressor):
    """Pairs, because LangChain's documents cannot be keys of a dict."""
    cold = order(compressor)
    position = TEXTS.index(cold[-1])
    for rewards in ({f"d{position}": 1.0}, {position: 0.9}, [(documents()[position], 0.8)]):
        for _ in range(6):
            ranking = await call(compressor, "rank", documents(), QUESTION)
            await call(compressor, "feedback", ranking, rewards=rewards)

    assert order(compressor)[0] == cold[-1]


async def test_unhelpful_documents_sink(call, compressor):
    """What did not help for a question falls behind what did."""
    first, second = order(compressor)[:2]
    for _ in range(12):
        ranking = await call(compressor, "rank", documents(), QUESTION)
        at = [TEXTS.index(text) for text in (first, second)]
        await call(compressor, "feedback", ranking, unhelpful=[documents()[at[0]]], helpful=[documents()[at[1]]])

    after = order(compressor)
    assert after.index(second) < after.index(first)


async def test_the_ranking_is_named_by_itself_its_id_or_its_question(call, compressor):
    """All three reach the same ranking; the feedback's id comes back."""
    ranking = await call(compressor, "rank", documents(), QUESTION)

    given = [
        await call(compressor, "feedback", ranking, helpful=["d1"]),
        await call(compressor, "feedback", ranking.ranking_id, helpful=["d1"]),
        await call(compressor, "feedback", query=QUESTION, helpful=["d1"]),
        await call(compressor, "feedback", ranking, helpful=["d1"], feedback_id="mine"),
    ]

    assert len(set(given)) == 4
    assert given[-1] == "mine"


async def test_unknown_rankings_questions_and_documents_are_errors(call, compressor):
    """Nothing is stored for what was never shown."""
    ranking = await call(compressor, "rank", documents(), QUESTION)

    with pytest.raises(UnknownRankingError):
        await call(compressor, "feedback", "nonsense", helpful=["d1"])
    with pytest.raises(UnknownRankingError):
        await call(compressor, "feedback", query="never asked", helpful=["d1"])
    with pytest.raises(UnknownDocumentError):
        await call(compressor, "feedback", ranking, helpful=[Document(page_content="never shown")])
    with pytest.raises(UnknownDocumentError):
        await call(compressor, "feedback", ranking, helpful=[len(TEXTS)])


@pytest.mark.parametrize("single", ["d1", 1, Document(page_content="x", id="d1")])
async def test_a_single_document_need_not_be_in_a_list(call, compressor, single):
    """The letters of an id are no ids, and the fields of a document no documents."""
    ranking = await call(compressor, "rank", documents(), QUESTION)

    assert await call(compressor, "feedback", ranking, helpful=single)


async def test_feedback_finds_the_namespace_where_the_ranking_was_made(call, compressor):
    """From the ranking itself, from the argument, or from the same ambient configuration as the ranking's."""
    tenant = {"configurable": {"namespace": "acme"}}
    rank = RunnableLambda(lambda question: compressor.rank(documents(), question))
    judge = RunnableLambda(lambda question: compressor.feedback(query=question, helpful=["d1"]))

    ranking = rank.invoke(QUESTION, config=tenant)
    assert ranking.namespace == "acme"
    assert await call(compressor, "feedback", ranking, helpful=["d1"])
    assert await call(compressor, "feedback", ranking.ranking_id, helpful=["d1"], namespace="acme")
    assert await call(compressor, "feedback", query=QUESTION, helpful=["d1"], namespace="acme")
    assert judge.invoke(QUESTION, config=tenant)
    with pytest.raises(UnknownRankingError):
        await call(compressor, "feedback", query=QUESTION, helpful=["d1"])


async def test_however_much_praise_a_document_gets_scores_stay_in_bounds(call, compressor):
    """Learning is bounded against relevance."""
    for _ in range(40):
        ranking = await call(compressor, "rank", documents(), QUESTION)
        await call(compressor, "feedback", ranking, helpful=["d6"])

    found = compressor.compress_documents(documents(), QUESTION)
    assert all(0 <= d.metadata["relevance_score"] <= 1 for d in found)


@pytest.mark.parametrize("place", ["memory://", "sqlite"])
def test_feedback_from_six_threads_is_all_kept(tmp_path, place):
    """Thirty rankings and feedbacks each, while others rank: nothing is lost."""
    url = place if place == "memory://" else f"sqlite:///{tmp_path / 'telemetry.db'}"
    with NeuralCacheCompressor(embeddings=HashingEncoder(), store=url, top_n=None) as compressor:

        def work(thread):
            for _ in range(30):
                compressor.feedback(compressor.rank(documents(), QUESTION), helpful=[f"d{thread}"])

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(work, range(6)))

        compressor.reranker.flush()
        learned = compressor.reranker.stats().namespace
        assert (learned.rankings, learned.feedback) == (180, 180)


async def test_hours_later_another_process_can_give_the_feedback(call, tmp_path):
    """The ranking's id is enough, and the first process sees what was taught."""
    url = f"sqlite:///{tmp_path / 'telemetry.db'}"
    with NeuralCacheCompressor(embeddings=HashingEncoder(), store=url, ranking_id_key="ranking", top_n=None) as here:
        cold = order(here)
        for _ in range(12):
            found = await call(here, "compress_documents", documents(), QUESTION)
            last = next(d for d in found if d.page_content == cold[-1])
            here.reranker.flush()
            with NeuralCacheCompressor(embeddings=HashingEncoder(), store=url) as there:
                await call(there, "feedback", last.metadata["ranking"], helpful=[last])

        assert order(here)[0] == cold[-1]
