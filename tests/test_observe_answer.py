"""``Reranker.observe_answer``: an answer becomes feedback for the rankings that it was made from."""

from __future__ import annotations

import gc

import pytest

from neuralcache_plugins import InvalidInputError, Reranker, RerankSettings, UnknownDocumentError, UnknownRankingError
from neuralcache_plugins.contracts import FeedbackGiven
from neuralcache_plugins.reranker import answers
from neuralcache_plugins.testing import HashingEncoder

QUESTION = "how do I reset my password"
IDS = ["hours", "reset", "cards"]
TEXTS = [
    "Our branches are open from nine to five on weekdays.",
    "To reset your password, open the settings of the app and choose Security.",
    "A new card is delivered to your home address within five working days.",
]
ANSWER = "Open the settings of the app, choose Security and reset your password."


@pytest.fixture
def reranker():
    with Reranker(HashingEncoder(), store="memory://") as made:
        yield made


def ranked(reranker, **options):
    return reranker.rerank(QUESTION, TEXTS, ids=IDS, **options)


def told(reranker):
    events = [recorded.event for recorded in reranker.store.read()]
    given = [event for event in events if isinstance(event, FeedbackGiven)]
    return [(event.ranking_id, dict(event.rewards), event.source) for event in given]


async def test_what_the_answer_used_is_rewarded_by_its_probability(call, reranker):
    ranking = ranked(reranker)

    found = await call(reranker, "observe_answer", ranking, ANSWER)

    assert list(found.rewards) == ["reset"]
    assert found.rewards["reset"] == pytest.approx(found.probabilities["reset"], abs=1e-4)
    assert told(reranker) == [(ranking.ranking_id, dict(found.rewards), "context_use")]
    assert list(found.feedback) == [ranking.ranking_id]


async def test_a_citation_is_feedback_of_its_own_source(call, reranker):
    ranking = ranked(reranker)

    await call(reranker, "observe_answer", ranking.ranking_id, {"answer": "So it is done.", "sources": ["cards"]})

    ((_, rewards, source),) = told(reranker)
    assert (list(rewards), source) == (["cards"], "citation")


async def test_an_abstention_gives_no_feedback(call, reranker):
    found = await call(reranker, "observe_answer", ranked(reranker), "I'm sorry, I don't know.")

    assert found.abstained
    assert (found.feedback, told(reranker)) == ({}, [])


async def test_the_same_answer_counts_once_and_another_one_again(call, reranker):
    ranking = ranked(reranker)
    for answer in (ANSWER, ANSWER, TEXTS[2]):
        await call(reranker, "observe_answer", ranking, answer)

    assert [list(rewards) for _, rewards, _ in told(reranker)] == [["reset"], ["cards"]]


def test_it_teaches_the_ranking(reranker):
    """A dozen answers from the document that comes last, and it comes first."""
    last = ranked(reranker).ids[-1]
    for _ in range(12):
        reranker.observe_answer(ranked(reranker), TEXTS[IDS.index(last)])

    assert ranked(reranker).ids[0] == last


def test_one_answer_from_two_rankings_is_told_to_both(reranker):
    """Each is rewarded for what it showed."""
    first = reranker.rerank("password", TEXTS[:2], ids=IDS[:2])
    second = reranker.rerank("card", TEXTS[2:], ids=IDS[2:])

    found = reranker.observe_answer([first, second.ranking_id], f"{TEXTS[1]} {TEXTS[2]}")

    assert list(found.probabilities) == [*first.ids, *second.ids]
    assert [(ranking_id, list(rewards)) for ranking_id, rewards, _ in told(reranker)] == [
        (first.ranking_id, ["reset"]), (second.ranking_id, ["cards"])]
    # "[1]" is the first of two lists, or of which?
    assert reranker.observe_answer([first, second], "As told there [1].").cited == ()


def test_the_prompt_tells_what_numbers_mean(reranker):
    ranking = ranked(reranker)
    prompt = "\n".join(f"[{number}] {text}" for number, text in enumerate(TEXTS[::-1]))

    assert reranker.observe_answer(ranking, "As told there [0].", prompt=prompt).cited == ("cards",)


def test_texts_that_are_forgotten_must_be_passed(reranker):
    with Reranker(HashingEncoder(), store="memory://", settings=RerankSettings(shown_characters=0)) as small:
        ranking = ranked(small)
        why = rf"^the texts of ranking {ranking.ranking_id} are no longer in memory "
        with pytest.raises(InvalidInputError, match=why + r"\(RerankSettings.shown_characters\); pass texts=$"):
            small.observe_answer(ranking, ANSWER)

        assert list(small.observe_answer(ranking, ANSWER, texts=TEXTS).rewards) == ["reset"]
        by_id = dict(zip(IDS, TEXTS, strict=True))
        assert list(small.observe_answer(ranking, ANSWER, texts=by_id).rewards) == ["reset"]


def test_the_oldest_texts_go_first():
    size = len(QUESTION) + sum(map(len, TEXTS))
    settings = RerankSettings(shown_characters=2 * size)
    with Reranker(HashingEncoder(), store="memory://", settings=settings) as reranker:
        rankings = [ranked(reranker) for _ in range(3)]

        assert [reranker.has_texts(ranking.ranking_id) for ranking in rankings] == [False, True, True]


def test_erasing_takes_the_texts_too(reranker):
    ranking = ranked(reranker)
    reranker.forget(document_ids=["hours"])

    assert not reranker.has_texts(ranking.ranking_id)
    del ranking
    gc.collect()


def test_namespaces_are_kept_apart(reranker):
    ranking = ranked(reranker, namespace="acme")

    assert reranker.has_texts(ranking.ranking_id, namespace="acme")
    assert not reranker.has_texts(ranking.ranking_id)
    with pytest.raises(UnknownRankingError):
        reranker.observe_answer(ranking.ranking_id, ANSWER)
    with pytest.raises(UnknownRankingError):
        reranker.observe_answer(ranking, ANSWER, namespace="other")
    assert list(reranker.observe_answer(ranking, ANSWER).feedback) == [ranking.ranking_id]


def test_what_cannot_be_used_is_refused(reranker):
    ranking = ranked(reranker)
    for texts, why in ((TEXTS[:1], r"texts must be the list that was ranked"), ("text", "texts must be a list of str"),
                       ({"reset": "x"}, "texts has no text of document"), ([1, 2, 3], "texts must hold str only")):
        with pytest.raises(InvalidInputError, match=why):
            reranker.observe_answer(ranking, ANSWER, texts=texts)
    with pytest.raises(InvalidInputError, match="texts belong to one ranking"):
        reranker.observe_answer([ranking, ranking], ANSWER, texts=TEXTS)
    with pytest.raises(InvalidInputError, match="ranking must be a Ranking or its id, got int"):
        reranker.observe_answer(7, ANSWER)
    with pytest.raises(UnknownRankingError):
        reranker.observe_answer("nonsense", ANSWER)
    assert told(reranker) == []
    assert not issubclass(UnknownDocumentError, InvalidInputError)


def test_an_empty_ranking_has_nothing_to_be_used(reranker):
    assert reranker.observe_answer(reranker.rerank(QUESTION, []), ANSWER).feedback == {}


def test_no_text_reaches_the_store(tmp_path):
    with Reranker(HashingEncoder(), store=f"sqlite:///{tmp_path / 'log.db'}") as reranker:
        reranker.observe_answer(ranked(reranker), ANSWER)

    stored = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"context_use" in stored
    assert b"password" not in stored
    assert b"Security" not in stored


# several rankings, one write


def two(reranker):
    return [reranker.rerank("password", TEXTS[:2], ids=IDS[:2]), reranker.rerank("card", TEXTS[2:], ids=IDS[2:])]


def test_several_rankings_are_told_with_one_append(reranker, monkeypatch):
    appended, append = [], reranker.store.append

    def spied(events, **options):
        appended.append(events)
        return append(events, **options)

    monkeypatch.setattr(reranker.store, "append", spied)
    rankings = two(reranker)
    reranker.flush()
    appended.clear()

    assert len(reranker.observe_answer(rankings, f"{TEXTS[1]} {TEXTS[2]}").feedback) == 2
    assert [[type(event) for event in events] for events in appended] == [[FeedbackGiven, FeedbackGiven]]


@pytest.mark.parametrize("gone", [0, 1])
def test_where_one_of_several_rankings_is_gone_none_is_told(reranker, gone):
    rankings = two(reranker)
    reranker.flush()
    with Reranker(HashingEncoder(), store=reranker.store) as elsewhere:  # another process, say
        elsewhere.forget(document_ids=[IDS[1 + gone]])

    with pytest.raises(UnknownRankingError if gone else (UnknownRankingError, UnknownDocumentError)):
        reranker.observe_answer(rankings, f"{TEXTS[1]} {TEXTS[2]}")
    assert told(reranker) == []


# what an answer was worth


def test_the_worth_of_an_answer_is_shared_by_what_it_used(reranker):
    ranking = ranked(reranker)
    seen = reranker.observe_answer(ranking, ANSWER)
    assert reranker.feedback(ranking, value=-0.5, source="thumbs", feedback_id="t") == "t"

    _, (_, rewards, source) = told(reranker)
    assert rewards == {name: pytest.approx(-0.5 * share, abs=1e-4) for name, share in seen.rewards.items()}
    assert list(rewards) == ["reset"]
    assert source == "thumbs"


async def test_the_answer_itself_will_do_and_is_remembered(call, reranker):
    ranking = ranked(reranker)
    await call(reranker, "feedback", query=QUESTION, value=1.0, answer=ANSWER)
    await call(reranker, "feedback", ranking.ranking_id, value=1.0)  # by what was seen before

    (_, first, _), (_, second, _) = told(reranker)
    assert first == second
    assert max(first, key=first.get) == "reset"


@pytest.mark.parametrize(("options", "rewards"), [
    ({}, {0: 0.4}), ({"used": {"cards": 0.5}}, {"cards": 0.2}), ({"used": {}}, None),
    ({"answer": "I don't know."}, None), ({"answer": ANSWER, "used": {"hours": 1.0}}, {"hours": 0.4}),
])
def test_who_says_what_was_used_is_believed_and_else_the_first_gets_all(options, rewards, reranker):
    ranking = ranked(reranker)
    given = reranker.feedback(ranking, value=0.4, **options)

    expected = [] if rewards is None else [{ranking.ids[name] if name == 0 else name: share
                                            for name, share in rewards.items()}]
    assert [shares for _, shares, _ in told(reranker)] == expected
    assert bool(given) == bool(expected)


def test_judgements_from_outside_follow_the_answer_too(reranker):
    """Undivided: what was used tells an agent's retrievals apart."""
    first, second = (reranker.rerank(question, TEXTS, ids=IDS, trace={"trace_id": "t"}) for question in ("one", "two"))
    reranker.observe_answer([first], ANSWER)
    reranker.observe_answer([second], "I'm sorry, I don't know.")
    told_before = len(told(reranker))
    assert len(reranker.judge("t", 1.0, source="langsmith:thumbs", feedback_id="j")) == 1

    (ranking_id, rewards, _), = told(reranker)[told_before:]
    assert ranking_id == first.ranking_id
    assert max(rewards, key=rewards.get) == "reset"
    assert rewards["reset"] > 0.8


def test_what_was_seen_is_bounded_and_goes_with_an_erasure(reranker, monkeypatch):
    monkeypatch.setattr(answers, "CAPACITY", 3)
    for _ in range(5):
        reranker.observe_answer(ranked(reranker), ANSWER)
    assert len(reranker._answers._seen._known) == 3
    reranker.forget(document_ids=["hours"])
    assert not reranker._answers._seen._known


@pytest.mark.parametrize(("options", "message"), [
    ({"value": 2.0}, r"^value must be a number in \[-1, 1\], got 2.0$"),
    ({"value": True}, r"^value must be a number in"),
    ({"value": 1.0, "helpful": ["reset"]}, r"^value judges the answer as a whole: give no documents with it$"),
    ({"answer": ANSWER}, r"^used and answer say how to share value, which is missing$"),
    ({"value": 1.0, "used": 3}, r"^used must map ids of documents"),
    ({"value": 1.0, "query": QUESTION}, r"^feedback needs a ranking \(or its id\), or the query"),
])
def test_a_worth_that_cannot_be_used_is_refused(options, message, reranker):
    with pytest.raises(InvalidInputError, match=message):
        reranker.feedback(ranked(reranker), **options)
    assert told(reranker) == []
