"""Signals from outside: scores of tracing tools by the ids of their traces, and clicks by what is seen at a rank."""

from types import SimpleNamespace
from uuid import uuid4

import numpy as np
import opentelemetry.trace
import pytest

from neuralcache_plugins import InvalidInputError, Reranker, RerankSettings, UnknownRankingError
from neuralcache_plugins.contracts import Recorded
from neuralcache_plugins.errors import UnknownDocumentError
from neuralcache_plugins.outside import (
    Taken,
    click_propensities,
    from_langfuse,
    from_langsmith,
    from_phoenix,
    rewards_from_clicks,
)
from neuralcache_plugins.reranker.feedback import TRACED
from neuralcache_plugins.testing import FakeClock, HashingEncoder, make_feedback, make_ranking

TEXTS = ["open at nine", "closed on sundays", "cards by mail", "fees abroad"]
IDS = ["open", "closed", "cards", "fees"]


@pytest.fixture(params=["memory", "sqlite"])
def reranker(request, tmp_path):
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path / 'telemetry.db'}"
    with Reranker(HashingEncoder(), store=url, clock=FakeClock()) as reranker:
        yield reranker


def ask(reranker, question="when are you open", **trace):
    return reranker.rerank(question, TEXTS, ids=IDS, trace=trace)


def told(reranker):
    return [entry.event for entry in reranker.store.read() if hasattr(entry.event, "rewards")]


# judgements by id


@pytest.mark.parametrize("name", ["run_id", "parent_run_id", "trace_id", "span_id"])
def test_a_judgement_finds_its_ranking_by_any_id_even_before_it_is_written(reranker, name):
    ask(reranker, **{name: "another"})
    ranking = ask(reranker, **{name: "mine"})
    given = reranker.judge("mine", 1.0, source="tool:score")

    (event,) = told(reranker)
    assert given == [event.feedback_id]
    assert (event.ranking_id, event.source) == (ranking.ranking_id, "tool:score")
    assert dict(event.rewards) == {ranking.ids[0]: 1.0}


@pytest.mark.parametrize("trace_id", ["0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"])
def test_a_ranking_knows_the_span_of_opentelemetry_in_which_it_was_made(reranker, trace_id):
    span = opentelemetry.trace.NonRecordingSpan(opentelemetry.trace.SpanContext(
        0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331, is_remote=False
    ))
    with opentelemetry.trace.use_span(span):
        ranking = ask(reranker)
        (of_many,) = reranker.rerank_many(["when are you open"], [TEXTS], ids=[IDS])
        handed_in = ask(reranker, trace_id="mine")
    outside = ask(reranker)

    reranker.judge(trace_id, 1.0, source="langfuse")

    expected = {ranking.ranking_id, of_many.ranking_id}
    if trace_id == "b7ad6b7169203331":
        expected.add(handed_in.ranking_id)  # its trace is another, its span is not
    assert {event.ranking_id for event in told(reranker)} == expected
    assert outside.ranking_id not in expected


async def test_beside_the_event_loop_too(reranker):
    ask(reranker, run_id="mine")

    assert len(await reranker.ajudge("mine", -0.5, source="tool", used={"open": 1.0})) == 1
    assert dict(told(reranker)[0].rewards) == {"open": -0.5}


def test_all_rankings_below_a_trace_share_its_judgement(reranker):
    first, second = ask(reranker, trace_id="root", run_id="r1"), ask(reranker, "and fees", trace_id="root", run_id="r2")
    assert len(reranker.judge("root", 1.0, source="tool")) == 2
    shares = {event.ranking_id: max(reward for _, reward in event.rewards) for event in told(reranker)}

    assert shares == {first.ranking_id: 0.5, second.ranking_id: 0.5}


def test_a_ranking_s_own_run_is_judged_alone(reranker):
    """A run that is one ranking's own and another's parent is the first one's."""
    own = ask(reranker, run_id="r1", trace_id="root")
    ask(reranker, run_id="r2", parent_run_id="r1", trace_id="root")
    reranker.judge("r1", 1.0, source="tool")

    assert [event.ranking_id for event in told(reranker)] == [own.ranking_id]


def test_of_very_many_rankings_the_newest_are_judged(reranker):
    rankings = [ask(reranker, f"question {number}", trace_id="root") for number in range(TRACED + 5)]
    reranker.judge("root", 1.0, source="tool", used={"open": 1.0})

    assert {event.ranking_id for event in told(reranker)} == {one.ranking_id for one in rankings[5:]}


def test_the_most_specific_id_that_is_known_counts(reranker):
    ranking = ask(reranker, trace_id="root")
    reranker.judge(["no such span", "root"], 1.0, source="tool")

    assert told(reranker)[0].ranking_id == ranking.ranking_id


def test_a_judgement_does_not_cross_namespaces_and_counts_once(reranker):
    ask(reranker, trace_id="root")
    with pytest.raises(UnknownRankingError, match=r"^no ranking of 'root' or 'x' in namespace 'other' of "):
        reranker.judge(["root", "x"], 1.0, source="tool", namespace="other")
    assert reranker.judge("root", 1.0, source="tool", feedback_id="f") == reranker.judge(
        "root", -1.0, source="tool", feedback_id="f")

    assert [dict(event.rewards)["open"] for event in told(reranker)] == [1.0]


@pytest.mark.parametrize(
    ("trace", "value", "message"),
    [("t", 1.5, r"value must be a number in \[-1, 1\], got 1\.5"), ("t", True, "got True"), ("t", "1", "got '1'"),
     ("t", float("nan"), "got nan"), ([], 1.0, r"trace must be one or more non-empty str, got \[\]"),
     ([None], 1.0, r"got \[None\]"), (5, 1.0, "got 5")],
)
def test_a_judgement_that_cannot_be_used_is_refused(reranker, trace, value, message):
    with pytest.raises(InvalidInputError, match=message):
        reranker.judge(trace, value, source="tool")


@pytest.mark.parametrize("used", [{"open": "much"}, {0: 1.0}, ["open"], 1.0])
def test_shares_that_are_none_are_refused_where_they_come_in(used, reranker):
    with pytest.raises(InvalidInputError, match=r"^used must map ids of documents to shares in \[0, 1\], got "):
        reranker.judge("r1", 1.0, source="tool", used=used)


# scores of tools


def test_langsmith_feedback_comes_in_as_objects_and_once(reranker):
    root, run = uuid4(), uuid4()
    ranking = ask(reranker, trace_id=str(root))
    records = [
        SimpleNamespace(id=uuid4(), run_id=run, trace_id=root, key="thumbs", score=0, value=None),
        SimpleNamespace(id=uuid4(), run_id=run, trace_id=root, key="note", score=None, value="a comment"),
        SimpleNamespace(id=uuid4(), run_id=uuid4(), trace_id=uuid4(), key="thumbs", score=1, value=None),
    ]
    assert from_langsmith(iter(records), reranker.judge) == Taken(given=1, unscored=1, unknown=1)
    from_langsmith(records, reranker.judge)

    (event,) = told(reranker)
    assert (event.ranking_id, event.source) == (ranking.ranking_id, "langsmith:thumbs")
    assert dict(event.rewards)["open"] == -1.0
    assert event.feedback_id == f"langsmith:{records[0].id}:{ranking.ranking_id}"


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"traceId": "root", "name": "stars", "value": 4, "id": "1"}, 0.5),
        ({"trace_id": "root", "observation_id": "unknown span", "name": "stars", "value": 1.0}, -1.0),
        ({"traceId": "root", "name": "ok", "value": None, "stringValue": "Correct"}, 1.0),
        ({"traceId": "root", "name": "ok", "value": True}, 1.0),
    ],
)
def test_langfuse_scores_in_camel_and_snake_case(reranker, record, expected):
    ask(reranker, trace_id="root")

    assert from_langfuse(record, reranker.judge, scale=(1, 5)) == Taken(given=1)
    assert dict(told(reranker)[0].rewards)["open"] == expected
    assert told(reranker)[0].source == f"langfuse:{record['name']}"


def test_phoenix_annotations_and_rows_of_its_data_frames(reranker):
    ask(reranker, span_id="s1")
    ask(reranker, "and fees", span_id="s2")
    records = [
        {"id": "A1", "span_id": "s1", "name": "hallucination", "result": {"score": 0.25, "label": "factual"}},
        {"context.span_id": "s2", "name": "qa", "score": float("nan"), "label": "incorrect"},
        {"context.span_id": "s2", "name": "qa", "score": None, "label": "purple"},
    ]

    assert from_phoenix(records, reranker.judge) == Taken(given=2, unscored=1)
    assert [(event.source, event.rewards[0][1]) for event in told(reranker)] == [
        ("phoenix:hallucination", -0.5), ("phoenix:qa", -1.0)]


def test_records_that_cannot_be_used_are_refused(reranker):
    with pytest.raises(InvalidInputError, match=r"^a record of langsmith needs one of run_id, trace_id, got none"):
        from_langsmith({"key": "thumbs", "score": 1}, reranker.judge)
    with pytest.raises(InvalidInputError, match=r"a score of langfuse must be in \(0\.0, 1\.0\), got 4; pass scale="):
        from_langfuse({"traceId": "t", "name": "stars", "value": 4}, reranker.judge)
    with pytest.raises(InvalidInputError, match=r"scale must be \(worst, best\)"):
        from_langfuse({"traceId": "t", "value": 1}, reranker.judge, scale=(1.0, 0.0))


# clicks


def test_a_click_counts_the_more_the_less_its_rank_is_seen():
    ranking = make_ranking(documents=("a", "b", "c", "d"))

    assert rewards_from_clicks(ranking, ["a", "b", "d"]) == pytest.approx({"a": 0.3, "b": 0.6, "d": 1.0})
    assert rewards_from_clicks(ranking, ["a", "b"], propensities=[1.0, 1.0]) == pytest.approx({"a": 0.3, "b": 0.3})
    assert rewards_from_clicks(ranking, ["d"], propensities=[1.0, 0.6]) == pytest.approx({"d": 0.5})


def test_who_leaves_at_once_was_not_served():
    ranking = make_ranking(documents=("a", "b", "c", "d"))
    stayed = rewards_from_clicks(ranking, ["a", "b", "d"], dwell_seconds={"a": 300.0, "b": 15.0, "d": 0.0})

    assert stayed == pytest.approx({"a": 0.3, "b": 0.3})


def test_rewards_of_clicks_go_in_as_feedback():
    with Reranker(HashingEncoder(), store="memory://") as reranker:
        ranking = ask(reranker)
        reranker.feedback(ranking, rewards=rewards_from_clicks(ranking, [ranking.ids[2]]), source="click")

        assert dict(told(reranker)[0].rewards) == {ranking.ids[2]: pytest.approx(0.9)}


def test_clicks_that_cannot_be_used_are_refused():
    with pytest.raises(UnknownDocumentError, match=r"document 'z' was not shown in ranking ranking-1"):
        rewards_from_clicks(make_ranking(), ["z"])
    with pytest.raises(InvalidInputError, match=r"propensities must be in \(0, 1\]"):
        rewards_from_clicks(make_ranking(), ["a"], propensities=[1.0, 0.0])


def clicked_log(rankings, *, seen, exploration):
    """Return the log of a reranker that explores, and of people who see rank r with probability ``seen[r]``."""
    rng = np.random.default_rng(0)
    relevance = rng.random(40) * 0.6
    texts, ids = [f"text {number}" for number in range(40)], [f"d{number}" for number in range(40)]
    settings = RerankSettings(exploration=exploration, learning=False)
    with Reranker(HashingEncoder(8), store="memory://", settings=settings, clock=FakeClock()) as reranker:
        for _ in range(rankings):
            ranking = reranker.rerank("text", texts, ids=ids, top_n=len(seen), prior_scores=relevance.tolist())
            clicks = {name: 1.0 for rank, name in enumerate(ranking.ids)
                      if rng.random() < seen[rank] * relevance[int(name[1:])]}
            if clicks:
                reranker.feedback(ranking, rewards=clicks, source="click:web")
        reranker.flush()
        return reranker.store.read(limit=10**6)


def test_propensities_are_found_in_a_log_with_exploration():
    seen = (1.0, 0.6, 0.4, 0.2)
    log = clicked_log(1_500, seen=seen, exploration=0.6)

    assert click_propensities(log, ranks=4) == pytest.approx(seen, abs=0.1)


def test_a_log_without_exploration_or_with_few_clicks_tells_nothing():
    with pytest.raises(InvalidInputError, match=r"no ranking in this log was explored"):
        click_propensities([Recorded(1, make_ranking())])
    explored = make_ranking(propensities=(0.5, 0.5, 0.5))
    with pytest.raises(InvalidInputError, match=r"^1 clicks \(effective number\) are too few, 100 are needed$"):
        click_propensities([Recorded(1, explored), Recorded(2, make_feedback(explored, source="click"))])
