"""The reranker as its users meet it."""

import asyncio
import gc
import itertools
import logging
import sqlite3
import threading
import weakref
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neuralcache_plugins import Reranker, RerankSettings, StoreSettings
from neuralcache_plugins.contracts import RankingServed
from neuralcache_plugins.errors import (
    DimensionMismatchError,
    InvalidInputError,
    StoreError,
    UnknownDocumentError,
    UnknownRankingError,
)
from neuralcache_plugins.stores.memory import MemoryStore
from neuralcache_plugins.testing import FailingStore, FakeClock, HashingEncoder

TEXTS = [
    "Cards are delivered within five working days",
    "Opening hours of our branches in town",
    "To reset a password open the settings of the app",
    "Interest rates for savings accounts",
    "Cancel a transfer that is still pending",
    "Exchange rates when you pay abroad",
]
IDS = ["cards", "hours", "password", "interest", "cancel", "abroad"]
QUESTION = "how long until my new card arrives"


@pytest.fixture
def reranker():
    with Reranker(HashingEncoder(), store="memory://", clock=FakeClock()) as one:
        yield one


def order(ranking):
    return ranking.positions.tolist()


def teach(reranker, question, helpful, times=8, **where):
    for _ in range(times):
        reranker.feedback(reranker.rerank(question, TEXTS, ids=IDS, **where), helpful=[helpful])


class TestRankings:
    def test_scores_are_floats_in_the_unit_interval_that_never_rise(self, reranker):
        ranking = reranker.rerank(QUESTION, TEXTS, ids=IDS)

        assert [type(score) for score in ranking.scores] == [float] * len(TEXTS)
        assert all(1 >= high >= low >= 0 for high, low in itertools.pairwise(ranking.scores))
        assert ranking.ids == tuple(IDS[position] for position in order(ranking))

    def test_only_top_n_are_returned_and_they_are_the_first_of_the_full_order(self, reranker):
        full = reranker.rerank(QUESTION, TEXTS, ids=IDS)
        assert order(reranker.rerank(QUESTION, TEXTS, ids=IDS, top_n=2)) == order(full)[:2]
        assert len(reranker.rerank(QUESTION, TEXTS, ids=IDS, top_n=99)) == len(TEXTS)

    def test_nothing_to_rank_is_an_empty_ranking(self, reranker):
        ranking = reranker.rerank(QUESTION, [])
        assert (len(ranking), ranking.ids, ranking.scores) == (0, (), ())
        assert "rank" in ranking.explain()

    def test_an_empty_question_leaves_the_retrievers_order(self, reranker):
        assert order(reranker.rerank("  ", TEXTS)) == list(range(len(TEXTS)))
        assert order(reranker.rerank("", TEXTS, prior_scores=[1, 3, 2, 0, -1, 9])) == [5, 1, 2, 0, 3, 4]

    def test_equal_prior_scores_say_nothing(self, reranker):
        texts = ["alpha", "beta", "reset password"]
        assert order(reranker.rerank("reset password", texts, prior_scores=[0.5] * 3))[0] == 2
        assert reranker.rerank("reset password", texts, prior_scores=[0.5] * 3).signals["prior"].tolist() == [0, 0, 0]

    def test_unknown_prior_scores_count_as_none(self, reranker):
        assert order(reranker.rerank(QUESTION, TEXTS, prior_scores=[None] * 6)) == order(
            reranker.rerank(QUESTION, TEXTS)
        )

    def test_identical_calls_give_identical_rankings(self, reranker):
        teach(reranker, QUESTION, "hours")
        one, two = (reranker.rerank(QUESTION, TEXTS, ids=IDS) for _ in range(2))
        assert (order(one), one.scores) == (order(two), two.scores)

    def test_arguments_are_not_modified(self, reranker):
        texts, ids, rows = list(TEXTS), list(IDS), np.ones((6, 8), dtype=np.float32)
        asked = np.ones(8)
        reranker.rerank(QUESTION, texts, ids=ids, vectors=rows, query_vector=asked)
        assert (texts, ids) == (TEXTS, IDS)
        assert rows.tolist() == np.ones((6, 8)).tolist()
        assert asked.tolist() == [1.0] * 8

    def test_duplicate_ids_and_texts_are_all_returned(self, reranker):
        ranking = reranker.rerank("card", ["a card", "a card", "a card"], ids=["x", "x", "y"])
        assert sorted(order(ranking)) == [0, 1, 2]

    def test_a_document_without_id_is_known_by_its_text(self, reranker):
        one = reranker.rerank("q", ["first", "second"], ids=[None, "own"])
        two = reranker.rerank("q", ["second", "first"])
        assert reranker.document_id("first") in one.ids
        assert reranker.document_id("first") in two.ids
        assert "own" in one.ids

    def test_ranking_ids_sort_by_time(self, reranker):
        ids = [reranker.rerank(QUESTION, TEXTS).ranking_id for _ in range(50)]
        assert ids == sorted(ids)
        assert len(set(ids)) == 50

    def test_what_scores_too_low_is_neither_returned_nor_recorded_as_shown(self, reranker):
        full = reranker.rerank(QUESTION, TEXTS, ids=IDS)
        least = full.scores[2]
        cut = reranker.rerank(QUESTION, TEXTS, ids=IDS, min_score=least)
        reranker.flush()
        assert order(cut) == order(full)[:3]
        assert reranker.store.ranking(cut.ranking_id).document_ids == full.ids[:3]
        assert len(reranker.rerank(QUESTION, TEXTS, min_score=2.0)) == 0

    def test_a_threshold_looks_at_each_documents_own_score(self):
        settings = RerankSettings(exploration=1.0)
        with Reranker(HashingEncoder(), store="memory://", settings=settings) as reranker:
            best = max(reranker.rerank("reset password", TEXTS).scores)
            for _ in range(20):
                assert len(reranker.rerank("reset password", TEXTS, min_score=best / 2)) > 0

    def test_rerank_many_asks_the_encoder_once_for_all_texts(self):
        encoder = HashingEncoder()
        with Reranker(encoder, store="memory://") as reranker:
            many = reranker.rerank_many(["card", "password"], [TEXTS[:4], TEXTS[2:]], top_n=2)
            calls = encoder.calls
            assert [order(ranking) for ranking in many] == [
                order(reranker.rerank("card", TEXTS[:4], top_n=2)),
                order(reranker.rerank("password", TEXTS[2:], top_n=2)),
            ]
        assert calls == 3  # two questions, one batch of texts
        assert encoder.calls == calls

    async def test_async_gives_the_same_as_sync_and_awaits_a_native_encoder(self):
        class Native(HashingEncoder):
            awaited = 0

            async def aembed_query(self, text):
                Native.awaited += 1
                return self.embed_query(text)

            async def aembed_documents(self, texts):
                Native.awaited += 1
                return self.embed_documents(texts)

        with Reranker(Native(), store="memory://") as reranker:
            ranking = await reranker.arerank(QUESTION, TEXTS, ids=IDS)
            assert Native.awaited == 2
            assert order(ranking) == order(reranker.rerank(QUESTION, TEXTS, ids=IDS))
            await reranker.afeedback(ranking, helpful=["hours"])
            assert reranker.stats().namespace.feedback == 1

    async def test_ranking_does_not_hold_up_the_event_loop(self):
        with Reranker(HashingEncoder(), store="memory://") as reranker:
            texts = [f"{text} {i}" for i in range(500) for text in TEXTS]
            beats, task = 0, asyncio.create_task(reranker.arerank(QUESTION, texts))
            while not task.done():
                beats += 1
                await asyncio.sleep(0.001)
            assert beats > 3

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(st.text(max_size=40), max_size=12), st.text(max_size=20), st.data())
    def test_any_text_is_ranked_completely_and_finitely(self, reranker, texts, query, data):
        prior = data.draw(
            st.none() | st.lists(st.none() | st.floats(allow_nan=True), min_size=len(texts), max_size=len(texts))
        )
        ranking = reranker.rerank(query, texts, prior_scores=prior)
        assert sorted(order(ranking)) == list(range(len(texts)))
        assert np.isfinite(ranking.scores).all()
        assert all(np.isfinite(values).all() for values in ranking.signals.values())


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((1, ["a"]), "query must be a str, got int"),
            (("q", "abc"), "texts must be a list of str, got str"),
            (("q", ["a", 2]), r"texts\[1\] must be a str, got int"),
        ],
    )
    def test_wrong_types_are_named(self, reranker, arguments, message):
        with pytest.raises(InvalidInputError, match=message):
            reranker.rerank(*arguments)

    @pytest.mark.parametrize(
        "options",
        [
            {"ids": ["a"]},
            {"prior_scores": [1.0]},
            {"vectors": [[1.0]]},
            {"top_n": 0},
            {"top_n": -1},
            {"top_n": 1.5},
            {"namespace": ""},
            {"session": " "},
            {"trace": {"user": "x"}},
            {"prior_scores": ["x", 1]},
            {"ids": [1, 2]},
        ],
    )
    def test_options_that_do_not_fit_are_refused(self, reranker, options):
        with pytest.raises(InvalidInputError):
            reranker.rerank("q", ["a", "b"], **options)

    def test_a_question_vector_of_another_width_says_both_widths(self, reranker):
        with pytest.raises(DimensionMismatchError, match="query_vector has 3 dimensions, expected 256"):
            reranker.rerank("q", ["a word"], query_vector=[1, 2, 3])
        with pytest.raises(DimensionMismatchError, match="query_vector has 3 dimensions, expected 2"):
            reranker.rerank("q", ["a"], query_vector=[1, 2, 3], vectors=[[1, 2]])

    def test_a_question_vector_that_is_not_finite_is_refused(self, reranker):
        with pytest.raises(ValueError, match="query_vector"):
            reranker.rerank("q", ["a"], query_vector=[float("nan")] * 256)

    def test_documents_with_broken_vectors_fall_back_to_their_other_signals(self, reranker, caplog):
        rows = [[1.0, 0.0], [float("nan"), 1.0], [1.0, 2.0, 3.0], [0.0, 1.0]]
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                ranking = reranker.rerank("q", ["a", "b", "c", "d"], query_vector=[0.0, 1.0], vectors=rows)
        assert sorted(order(ranking)) == [0, 1, 2, 3]
        assert reranker.stats().unusable_vectors == 4
        assert sum("no usable vector" in record.message for record in caplog.records) == 1

    def test_missing_vectors_are_encoded_and_given_ones_used(self):
        encoder = HashingEncoder(2)
        with Reranker(encoder, store="memory://") as reranker:
            ranking = reranker.rerank("q", ["a", "b"], query_vector=[1.0, 0.0], vectors=[[1.0, 0.0], None])
            assert encoder.calls == 1
            assert ranking.signals["dense"][order(ranking).index(0)] == pytest.approx(1.0)


class TestLearning:
    @pytest.mark.parametrize("helpful", ["hours", "abroad"])
    def test_eight_rewards_lift_a_document_for_its_question_and_paraphrases_only(self, helpful):
        with Reranker(store="memory://") as reranker:
            unrelated = (
                "can I cancel a transfer",
                "rates for saving",
                "where is the next branch",
                "reset the app",
                "paying with pounds in France",
                "is there a fee for savings",
            )
            before = {question: order(reranker.rerank(question, TEXTS, ids=IDS)) for question in unrelated}
            teach(reranker, QUESTION, helpful)

            assert reranker.rerank(QUESTION, TEXTS, ids=IDS).ids[0] == helpful
            for paraphrase in ("how long until my card arrives", "when will my new card arrive"):
                assert reranker.rerank(paraphrase, TEXTS, ids=IDS).ids[0] == helpful
            for question, expected in before.items():
                assert order(reranker.rerank(question, TEXTS, ids=IDS)) == expected

    @pytest.mark.parametrize("shown", [2, 3, 5])
    def test_eight_rewards_suffice_however_few_are_shown(self, reranker, shown):
        texts, ids = TEXTS[:shown], IDS[:shown]
        for _ in range(8):
            reranker.feedback(reranker.rerank(QUESTION, texts, ids=ids), helpful=[ids[-1]])
        assert reranker.rerank(QUESTION, texts, ids=ids).ids[0] == ids[-1]

    def test_eight_people_may_answer_one_ranking(self, reranker):
        ranking = reranker.rerank(QUESTION, TEXTS, ids=IDS)
        for person in range(8):
            reranker.feedback(ranking, helpful=["hours"], feedback_id=f"person-{person}")
        assert reranker.rerank(QUESTION, TEXTS, ids=IDS).ids[0] == "hours"

    def test_without_feedback_the_order_stays_exactly_cold(self, reranker):
        cold = order(reranker.rerank(QUESTION, TEXTS, ids=IDS))
        for _ in range(200):
            assert order(reranker.rerank(QUESTION, TEXTS, ids=IDS)) == cold

    def test_learning_can_be_switched_off_and_feedback_is_still_recorded(self):
        with Reranker(HashingEncoder(), store="memory://", settings=RerankSettings(learning=False)) as reranker:
            cold = order(reranker.rerank(QUESTION, TEXTS, ids=IDS))
            teach(reranker, QUESTION, "hours")
            assert order(reranker.rerank(QUESTION, TEXTS, ids=IDS)) == cold
            assert reranker.stats().namespace.feedback == 8

    def test_namespaces_learn_apart(self, reranker):
        cold = order(reranker.rerank(QUESTION, TEXTS, ids=IDS, namespace="b"))
        teach(reranker, QUESTION, "hours", namespace="a")
        assert reranker.rerank(QUESTION, TEXTS, ids=IDS, namespace="a").ids[0] == "hours"
        assert order(reranker.rerank(QUESTION, TEXTS, ids=IDS, namespace="b")) == cold

    def test_another_encoder_starts_anew_and_the_old_one_finds_its_memory_again(self):
        store = MemoryStore()
        with Reranker(HashingEncoder(64), store=store) as old:
            teach(old, QUESTION, "hours")
        with Reranker(HashingEncoder(128), store=store) as new:
            assert new.rerank(QUESTION, TEXTS, ids=IDS).ids[0] != "hours"
            assert new.rerank(QUESTION, TEXTS, ids=IDS).signals["pheromone"].any()
        with Reranker(HashingEncoder(64), store=store) as old:
            assert old.rerank(QUESTION, TEXTS, ids=IDS).ids[0] == "hours"
        store.close()

    def test_without_learning_a_session_bends_nothing(self):
        with Reranker(store="memory://", settings=RerankSettings(learning=False)) as reranker:
            plain = order(reranker.rerank("more about that", TEXTS, ids=IDS, prior_scores=[1.0] * 6))
            teach(reranker, "exchange rates", "abroad", times=3, session="s")
            assert order(reranker.rerank("more about that", TEXTS, prior_scores=[1.0] * 6, session="s")) == plain

    def test_namespaces_beyond_the_bound_are_read_from_the_log_again(self):
        settings = RerankSettings(namespaces_in_memory=2)
        with Reranker(HashingEncoder(), store="memory://", settings=settings) as reranker:
            for number in range(5):
                teach(reranker, QUESTION, "hours", namespace=f"tenant-{number}")
            assert len(reranker._memory._states) == 2
            assert reranker.rerank(QUESTION, TEXTS, ids=IDS, namespace="tenant-0").ids[0] == "hours"

    def test_a_session_bends_only_its_own_questions(self):
        with Reranker(store="memory://") as reranker:
            vague = "tell me more about that"
            plain = reranker.rerank(vague, TEXTS, ids=IDS, prior_scores=[1.0] * 6)
            ranking = reranker.rerank("exchange rates abroad", TEXTS, ids=IDS, session="s")
            reranker.feedback(ranking, helpful=["abroad"])
            bent = reranker.rerank(vague, TEXTS, ids=IDS, prior_scores=[1.0] * 6, session="s")
            other = reranker.rerank(vague, TEXTS, ids=IDS, prior_scores=[1.0] * 6, session="t")
        assert bent.scores[bent.ids.index("abroad")] > plain.scores[plain.ids.index("abroad")]
        assert order(other) == order(plain)

    def test_the_words_of_what_helped_in_a_session_stay_in_memory_until_something_is_forgotten(self):
        settings = RerankSettings(source_weights={"marker": 0.0})
        with Reranker(HashingEncoder(), store="memory://", settings=settings) as reranker:
            def lexical(session):
                ranking = reranker.rerank("tell me more", TEXTS, ids=IDS, prior_scores=[1.0] * 6, session=session)
                return dict(zip(ranking.ids, ranking.signals["lexical"].tolist(), strict=True))

            for session, source in (("s", "user"), ("t", "marker")):
                ranking = reranker.rerank("exchange rates abroad", TEXTS, ids=IDS, session=session)
                reranker.feedback(ranking, helpful=["abroad"], source=source)

            assert lexical("s")["abroad"] > 0
            assert reranker._words.of("default", "t") is None
            assert not any(lexical("never seen").values())
            assert not any(lexical(None).values())
            assert all(one.event.document_texts is None for one in reranker.store.read()
                       if isinstance(one.event, RankingServed))
            reranker.forget(document_ids=["nothing of it"])
            assert not any(lexical("s").values())

    def test_only_so_many_sessions_have_words(self, monkeypatch):
        monkeypatch.setattr("neuralcache_plugins.reranker.shown.CAPACITY", 2)
        with Reranker(HashingEncoder(), store="memory://") as reranker:
            for session in "abc":
                teach(reranker, "exchange rates abroad", "abroad", times=1, session=session)
            known = [reranker._words.of("default", session) is not None for session in "abc"]
        assert known == [False, True, True]

    def test_a_clock_that_jumps_back_changes_no_order(self):
        clock = FakeClock()
        with Reranker(HashingEncoder(), store="memory://", clock=clock) as reranker:
            teach(reranker, QUESTION, "hours")
            now = order(reranker.rerank(QUESTION, TEXTS, ids=IDS))
            clock.advance(-1e8)
            assert order(reranker.rerank(QUESTION, TEXTS, ids=IDS)) == now


class TestFeedback:
    def test_documents_are_named_by_id_or_by_position_in_the_callers_list(self, reranker):
        ranking = reranker.rerank(QUESTION, TEXTS, ids=IDS)
        reranker.feedback(ranking, helpful=[1], unhelpful="cancel", rewards={"abroad": 0.25, 0: -0.5})
        (event,) = [one.event for one in reranker.store.read() if hasattr(one.event, "rewards")]
        assert dict(event.rewards) == {"hours": 1.0, "cancel": -1.0, "abroad": 0.25, "cards": -0.5}

    def test_rewards_may_be_pairs_and_positions_numpys_integers(self, reranker):
        ranking = reranker.rerank(QUESTION, TEXTS, ids=IDS)
        reranker.feedback(ranking, helpful=[ranking.positions[0]], rewards=[("cancel", -0.5)])
        (event,) = [one.event for one in reranker.store.read() if hasattr(one.event, "rewards")]
        assert dict(event.rewards) == {ranking.ids[0]: 1.0, "cancel": -0.5}

    def test_feedback_finds_its_ranking_by_id_or_by_the_question(self, reranker):
        ranking = reranker.rerank(QUESTION, TEXTS, ids=IDS)
        reranker.feedback(ranking.ranking_id, helpful=["hours"])
        reranker.flush()
        reranker.feedback(query=f"  {QUESTION.upper()} ", helpful=["hours"])
        assert reranker.stats().namespace.feedback == 2

    def test_hours_later_and_in_another_process_the_id_still_works(self, tmp_path):
        url = f"sqlite:///{tmp_path}/t.db"
        with Reranker(HashingEncoder(), store=url) as one:
            ranking = one.rerank(QUESTION, TEXTS, ids=IDS)
        with Reranker(HashingEncoder(), store=url) as other:
            other.feedback(ranking.ranking_id, helpful=["hours"])
            other.feedback(query=QUESTION, helpful=["hours"])
            assert other.stats().namespace.feedback == 2

    def test_repeating_a_feedback_id_changes_nothing(self, reranker):
        ranking = reranker.rerank(QUESTION, TEXTS, ids=IDS)
        for _ in range(3):
            assert reranker.feedback(ranking, helpful=["hours"], feedback_id="mine") == "mine"
        assert reranker.stats().namespace.feedback == 1

    @pytest.mark.parametrize(
        ("given", "error", "message"),
        [
            ({"helpful": ["nope"]}, UnknownDocumentError, "document 'nope' was not shown in ranking"),
            ({"helpful": [5]}, UnknownDocumentError, "position 5 was not shown"),
            ({}, InvalidInputError, "at least one document"),
            ({"rewards": {"hours": 1.5}}, InvalidInputError, r"must be in \[-1, 1\], got 1.5"),
            ({"rewards": {"hours": float("nan")}}, InvalidInputError, r"must be in \[-1, 1\]"),
            ({"rewards": {"hours": "much"}}, InvalidInputError, "must be a number"),
            ({"helpful": ["hours"], "unhelpful": ["hours"]}, InvalidInputError, "two different rewards"),
            ({"helpful": [True]}, InvalidInputError, "named by id"),
        ],
    )
    def test_feedback_that_cannot_be_meant_is_refused_and_nothing_stored(self, reranker, given, error, message):
        ranking = reranker.rerank(QUESTION, TEXTS[:2], ids=IDS[:2])
        with pytest.raises(error, match=message):
            reranker.feedback(ranking, **given)
        assert reranker.stats().namespace.feedback == 0

    def test_unknown_rankings_and_questions_are_named(self, reranker):
        with pytest.raises(UnknownRankingError, match="no ranking 'x' in namespace 'default'"):
            reranker.feedback("x", helpful=["a"])
        with pytest.raises(UnknownRankingError, match="no ranking of this question"):
            reranker.feedback(query="never asked", helpful=["a"])
        with pytest.raises(InvalidInputError, match="one of them"):
            reranker.feedback(helpful=["a"])
        with pytest.raises(UnknownRankingError, match="empty"):
            reranker.feedback(reranker.rerank("q", []), helpful=["a"])

    def test_a_ranking_of_another_namespace_cannot_be_reached_by_its_id(self, reranker):
        ranking = reranker.rerank(QUESTION, TEXTS, ids=IDS, namespace="tenant")
        reranker.flush()
        with pytest.raises(UnknownRankingError):
            reranker.feedback(ranking.ranking_id, helpful=["hours"])
        with pytest.raises(UnknownRankingError):
            reranker.feedback(ranking, helpful=["hours"], namespace="other")
        reranker.feedback(ranking.ranking_id, helpful=["hours"], namespace="tenant")
        reranker.feedback(ranking, helpful=["hours"])
        assert reranker.stats(namespace="tenant").namespace.feedback == 2


class TestForgetting:
    def test_what_is_forgotten_no_longer_influences_the_order(self, reranker):
        cold = order(reranker.rerank(QUESTION, TEXTS, ids=IDS))
        teach(reranker, QUESTION, "hours")
        receipt = reranker.forget(document_ids=["hours"])
        assert receipt.feedback == 8
        assert receipt.shown_documents >= 8
        assert order(reranker.rerank(QUESTION, TEXTS, ids=IDS)) == cold

    def test_a_namespace_a_session_and_what_is_old_can_be_forgotten(self):
        clock = FakeClock()
        with Reranker(HashingEncoder(), store="memory://", clock=clock) as reranker:
            teach(reranker, QUESTION, "hours", times=2, session="s")
            teach(reranker, QUESTION, "hours", times=3, namespace="n")
            assert reranker.forget(session="s").rankings == 2
            assert reranker.forget(namespace="n").feedback == 3
            teach(reranker, QUESTION, "hours", times=1)
            clock.advance(100)
            teach(reranker, QUESTION, "hours", times=1)
            assert reranker.forget(older_than=50).rankings == 1
            clock.advance(100)
            assert reranker.forget(older_than=timedelta(seconds=1000)).rankings == 0
            assert reranker.forget(older_than=datetime.fromtimestamp(clock(), UTC)).rankings == 1

    @pytest.mark.parametrize("what", [
        {}, {"older_than": -1}, {"older_than": datetime(2026, 1, 1)},  # noqa: DTZ001
        {"older_than": "x"}, {"document_ids": [1]},
        {"document_ids": []},
    ])
    def test_forgetting_needs_to_know_what(self, reranker, what):
        with pytest.raises(InvalidInputError):
            reranker.forget(**what)

    def test_feedback_for_what_was_erased_is_refused_and_for_the_rest_it_is_not(self, reranker):
        gone = reranker.rerank(QUESTION, TEXTS, ids=IDS, session="s")
        cut = reranker.rerank(QUESTION, TEXTS, ids=IDS)
        reranker.forget(session="s")
        reranker.forget(document_ids=["hours"])
        with pytest.raises(UnknownRankingError, match="erased"):
            reranker.feedback(gone, helpful=["cards"])
        with pytest.raises(UnknownRankingError):
            reranker.feedback(gone.ranking_id, helpful=["cards"])
        with pytest.raises(UnknownDocumentError):
            reranker.feedback(cut, helpful=["hours"])
        reranker.feedback(cut, helpful=["cards"])
        reranker.feedback(reranker.rerank(QUESTION, TEXTS, ids=IDS, session="s"), helpful=["hours"])
        assert reranker.stats().namespace.feedback == 2

    def test_what_another_process_erased_does_not_come_back(self, tmp_path):
        url = f"sqlite:///{tmp_path}/t.db"
        with Reranker(HashingEncoder(), store=url) as one, Reranker(HashingEncoder(), store=url) as other:
            ranking = one.rerank(QUESTION, TEXTS, ids=IDS)
            one.feedback(ranking, helpful=["hours"])
            other.forget(namespace="default")
            for named in (ranking, ranking.ranking_id):
                with pytest.raises(UnknownRankingError):
                    one.feedback(named, helpful=["hours"])
            one.feedback(one.rerank(QUESTION, TEXTS, ids=IDS), helpful=["cards"])
            assert one.stats().namespace.feedback == other.stats().namespace.feedback == 1

    def test_what_another_process_erased_is_dropped_from_memory_too(self, tmp_path):
        url = f"sqlite:///{tmp_path}/t.db"
        with Reranker(HashingEncoder(), store=url) as one, Reranker(HashingEncoder(), store=url) as other:
            ranking = one.rerank(QUESTION, TEXTS, ids=IDS)
            one.flush()
            other.forget(document_ids=[ranking.ids[0]])
            # the places in the ranking are others now: a vector kept by place would be that of the erased document
            one.feedback(ranking.ranking_id, helpful=[ranking.ids[1]])
            given = one.store.read()[-1].event
            assert given.ranking.document_ids == ranking.ids[1:]
            assert given.document_vector is None
            assert not one.has_texts(ranking.ranking_id)

    def test_an_erasure_that_fails_discards_nothing(self):
        store = FailingStore(MemoryStore())
        with Reranker(HashingEncoder(), store=store) as reranker:
            ranking = reranker.rerank(QUESTION, TEXTS, ids=IDS, session="s")
            store.fail()
            with pytest.raises(StoreError):
                reranker.forget(session="s")
            store.recover()
            reranker.feedback(ranking, helpful=["hours"])
            assert reranker.stats().namespace.feedback == 1
        store.close()

    def test_events_beyond_the_retention_go_by_themselves(self):
        clock = FakeClock()
        keep = StoreSettings(retention_seconds=1000.0, flush_interval_seconds=60.0)
        with Reranker(HashingEncoder(), store="memory://", clock=clock, store_settings=keep) as reranker:
            old = reranker.rerank(QUESTION, TEXTS, ids=IDS)
            reranker.flush()
            clock.advance(2000)
            new = reranker.rerank(QUESTION, TEXTS, ids=IDS)
            reranker.flush()
            for thread in threading.enumerate():
                if thread.name == "neuralcache-tidy":
                    thread.join()
            assert reranker.store.ranking(old.ranking_id) is None
            assert reranker.store.ranking(new.ranking_id) is not None

    def test_pending_rankings_are_forgotten_too(self, reranker):
        ranking = reranker.rerank(QUESTION, TEXTS, ids=IDS, session="s")
        reranker.forget(session="s")
        reranker.flush()
        assert reranker.store.ranking(ranking.ranking_id) is None


class TestFailures:
    def test_a_failing_encoder_degrades_to_prior_and_words(self, caplog):
        class Broken(HashingEncoder):
            def embed_query(self, text):
                raise ConnectionError("no route")

        with Reranker(Broken(), store="memory://") as reranker:
            for _ in range(3):
                ranking = reranker.rerank("reset password", TEXTS, ids=IDS, prior_scores=[1.0] * 6)
            assert ranking.degraded == ("encoder",)
            assert ranking.ids[0] == "password"
            assert reranker.stats().degraded == {"encoder": 3}
            reranker.feedback(ranking, helpful=["hours"])
        assert sum("encoder" in record.message for record in caplog.records) == 1

    async def test_a_slow_async_encoder_degrades_after_its_timeout(self):
        class Slow(HashingEncoder):
            async def aembed_query(self, text):
                await asyncio.sleep(30)

        settings = RerankSettings(encoder_timeout_seconds=0.02)
        with Reranker(Slow(), store="memory://", settings=settings) as reranker:
            assert (await reranker.arerank("q", TEXTS)).degraded == ("encoder",)

    def test_a_failing_store_never_stops_a_ranking_and_always_stops_feedback(self):
        store = FailingStore(MemoryStore())
        with Reranker(HashingEncoder(), store=store) as reranker:
            teach(reranker, QUESTION, "hours")
            learned = order(reranker.rerank(QUESTION, TEXTS, ids=IDS))
            store.fail()
            ranking = reranker.rerank(QUESTION, TEXTS, ids=IDS)
            assert ranking.degraded == ("store",)
            assert order(ranking) == learned
            with pytest.raises(StoreError):
                reranker.feedback(ranking, helpful=["hours"])
            store.recover()
            reranker.feedback(ranking, helpful=["hours"])
            assert reranker.stats().namespace.feedback == 9
        store.close()

    def test_close_is_final_for_the_buffer_and_may_be_repeated(self, tmp_path):
        url = f"sqlite:///{tmp_path}/t.db"
        reranker = Reranker(HashingEncoder(), store=url)
        ranking = reranker.rerank(QUESTION, TEXTS)
        reranker.close()
        reranker.close()
        with Reranker(HashingEncoder(), store=url) as again:
            assert again.store.ranking(ranking.ranking_id) is not None

    def test_a_store_handed_in_stays_open(self):
        store = MemoryStore()
        Reranker(HashingEncoder(), store=store).close()
        assert store.head().position == 0
        store.close()


class TestOptions:
    def test_diversity_brings_in_what_differs(self):
        texts = ["reset the password now", "reset the password today", "reset the password", "branch opening hours"]
        settings = RerankSettings(diversity=0.7)
        with Reranker(HashingEncoder(), store="memory://", settings=settings) as reranker:
            ranking = reranker.rerank("reset the password", texts, top_n=2)
        assert 3 in order(ranking)
        assert ranking.scores[0] >= ranking.scores[1]

    def test_exploration_is_recorded_with_its_propensities_and_repeats_with_its_seed(self):
        def run(seed):
            settings = RerankSettings(exploration=0.5, seed=seed)
            with Reranker(HashingEncoder(), store="memory://", settings=settings) as reranker:
                rankings = [reranker.rerank(QUESTION, TEXTS, top_n=3) for _ in range(20)]
                reranker.flush()
                logged = [one.event.propensities for one in reranker.store.read()]
            assert logged == [pytest.approx(ranking.propensities) for ranking in rankings]
            return [order(ranking) for ranking in rankings]

        assert run(1) == run(1) != run(2)

    def test_the_scorer_decides_among_contenders_and_is_asked_once_for_a_pair(self):
        asked = []

        def scorer(query, texts):
            asked.extend(texts)
            return [9.0 if "Interest" in text else 0.0 for text in texts]

        settings = RerankSettings(scorer_weight=5.0)
        with Reranker(HashingEncoder(), store="memory://", settings=settings, scorer=scorer) as reranker:
            first = reranker.rerank(QUESTION, TEXTS, ids=IDS, prior_scores=[1.0] * 6)
            again = reranker.rerank(QUESTION, TEXTS, ids=IDS, prior_scores=[1.0] * 6)
        assert first.ids[0] == "interest"
        assert order(again) == order(first)
        assert len(asked) == len(set(asked))

    def test_what_the_scorer_did_not_see_shows_no_score(self):
        settings = RerankSettings(scorer_budget=2)
        scored = Reranker(HashingEncoder(), store="memory://", settings=settings, scorer=lambda q, t: [1.0] * len(t))
        with scored as reranker:
            ranking = reranker.rerank(QUESTION, TEXTS, ids=IDS, prior_scores=[1.0] * 6)
            reranker.flush()
        assert np.isnan(ranking.signals["scorer"]).sum() == 4
        assert "scorer" in ranking.explain()

    def test_a_sure_order_saves_the_scorer(self):
        def scorer(query, texts):
            raise AssertionError("not needed")

        with Reranker(HashingEncoder(), store="memory://", scorer=scorer) as reranker:
            texts = [*TEXTS, *(f"page {i} about something else" for i in range(30))]
            ranking = reranker.rerank("reset a password", texts, prior_scores=[0, 0, 1000, *[0] * 33])
        assert (order(ranking)[0], ranking.degraded) == (2, ())

    @pytest.mark.parametrize("scorer", [lambda q, t: [1.0], lambda q, t: [float("nan")] * len(t), lambda q, t: 1 / 0])
    def test_a_failing_scorer_degrades(self, scorer):
        with Reranker(HashingEncoder(), store="memory://", scorer=scorer) as reranker:
            assert reranker.rerank(QUESTION, TEXTS, prior_scores=[1.0] * 6).degraded == ("scorer",)

    def test_no_text_is_stored_unless_asked(self, tmp_path):
        secret, path = "zebrafish", tmp_path / "t.db"
        for store_text in (False, True):
            settings = StoreSettings(store_text=store_text)
            with Reranker(HashingEncoder(), store=f"sqlite:///{path}", store_settings=settings) as reranker:
                reranker.feedback(reranker.rerank(f"about {secret}", [f"a {secret} text"], ids=["a"]), helpful=["a"])
            assert (secret.encode() in path.read_bytes()) is store_text

    def test_trace_ids_and_session_are_recorded(self, reranker):
        trace = {"run_id": "r", "parent_run_id": "p", "trace_id": "t", "span_id": "s"}
        ranking = reranker.rerank(QUESTION, TEXTS, session="talk", trace=trace)
        reranker.flush()
        stored = reranker.store.ranking(ranking.ranking_id)
        assert (stored.run_id, stored.parent_run_id, stored.trace_id, stored.span_id) == ("r", "p", "t", "s")
        assert stored.session == "talk"


def test_threads_share_one_reranker_and_lose_nothing(reranker):
    errors = []

    def work(number):
        try:
            for step in range(30):
                ranking = reranker.rerank(f"{QUESTION} {number} {step}", TEXTS, ids=IDS)
                reranker.feedback(ranking, helpful=[IDS[step % 6]])
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    assert reranker.stats().namespace.feedback == 180
    assert reranker.stats().namespace.rankings == 180


class TestStatements:
    """What the hot path says to SQLite."""

    @pytest.fixture
    def watched(self, tmp_path, monkeypatch):
        statements = []
        connect = sqlite3.connect

        def connect_watched(*arguments, **options):
            connection = connect(*arguments, **options)
            connection.set_trace_callback(lambda text: statements.append((threading.current_thread().name, text)))
            return connection

        monkeypatch.setattr(sqlite3, "connect", connect_watched)
        still = StoreSettings(flush_interval_seconds=3600.0)
        with Reranker(HashingEncoder(), store=f"sqlite:///{tmp_path}/t.db", store_settings=still) as reranker:
            teach(reranker, QUESTION, "hours", times=3)
            reranker.flush()
            reranker.rerank(QUESTION, TEXTS, ids=IDS)
            yield reranker, statements

    def test_a_ranking_asks_nothing_but_whether_the_log_has_moved(self, watched):
        reranker, statements = watched
        statements.clear()
        for _ in range(5):
            reranker.rerank(QUESTION, TEXTS, ids=IDS, top_n=3)
        assert [text for _, text in statements] == ["PRAGMA data_version"] * 5

    def test_own_writes_are_not_read_back_by_any_thread(self, watched):
        reranker, statements = watched
        for _ in range(3):
            ranking = reranker.rerank(QUESTION, TEXTS, ids=IDS)
            reranker.flush()
            reranker.feedback(ranking, helpful=["hours"])
        statements.clear()

        def rank():
            reranker.rerank(QUESTION, TEXTS, ids=IDS)

        threads = [threading.Thread(target=rank) for _ in range(3)]
        for thread in threads:
            thread.start()
            thread.join()
        assert {text for _, text in statements} == {"PRAGMA data_version"}
        assert reranker.stats().namespace.feedback == 6

    def test_another_process_is_noticed_at_the_next_ranking(self, watched, tmp_path):
        reranker, _ = watched
        with Reranker(HashingEncoder(), store=f"sqlite:///{tmp_path}/t.db") as other:
            teach(other, QUESTION, "abroad", times=2)
        reranker.rerank(QUESTION, TEXTS, ids=IDS)
        assert reranker.stats().namespace.feedback == 5


def test_a_reranker_nobody_closed_is_collected_and_its_rankings_are_written(tmp_path):
    """In a notebook each run of a cell makes another one."""
    url = f"sqlite:///{tmp_path}/telemetry.db"
    reranker = Reranker(HashingEncoder(), store=url, store_settings=StoreSettings(flush_interval_seconds=0.02))
    reranker.feedback(reranker.rerank(QUESTION, TEXTS, ids=IDS), helpful=["cards"])
    reranker.rerank(QUESTION, TEXTS, ids=IDS)
    thread = reranker._recorder._thread._thread
    remembered = weakref.ref(reranker)
    del reranker
    gc.collect()

    assert remembered() is None
    thread.join(10)
    with Reranker(HashingEncoder(), store=url) as other:
        assert other.stats().namespace.rankings == 2
