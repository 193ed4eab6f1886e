"""A ranking says why it is as it is: shares that add up, and the questions of the past behind them."""

import copy
import gc
import math
import pickle
import weakref
from dataclasses import replace

import numpy as np
import pytest

from neuralcache_plugins import Reranker, RerankSettings, StoreSettings
from neuralcache_plugins.contracts import Remembered
from neuralcache_plugins.langchain import NeuralCacheCompressor
from neuralcache_plugins.llamaindex import NeuralCachePostprocessor
from neuralcache_plugins.memory import changes, successors
from neuralcache_plugins.memory.snapshots import fold_name
from neuralcache_plugins.stores.memory import MemoryStore
from neuralcache_plugins.testing import FailingStore, HashingEncoder

TEXTS = {
    "hours": "Opening hours of our branches", "reset": "Reset the password in the settings of the app",
    "cards": "Cards are delivered within five working days", "fees": "Fees for transfers abroad",
    "lost": "Block a lost card", "interest": "Interest on savings accounts",
}
IDS = list(TEXTS)
ASKED = ["when will my card arrive", "when will my new card arrive", "when does my card arrive at last"]
ELSEWHERE = ["how much interest do savings accounts earn", "what interest do my savings get", "interest on my savings"]
AGAIN = "when will my card finally arrive"


def ask(reranker, question=AGAIN, **rest):
    return reranker.rerank(question, list(TEXTS.values()), ids=IDS, **rest)


def teach(reranker, *, times=12, helpful="cards", **rest):
    """Ask in turn and say what helped, until learning has earned its trust; people ask other things in between."""
    rankings = []
    for turn in range(times):
        ask(reranker, f"a{turn} b{turn} c{turn}", **rest)
        ranking = ask(reranker, ASKED[turn % len(ASKED)], **rest)
        reranker.feedback(ranking, helpful=[helpful])
        rankings.append(ranking)
    return rankings


@pytest.fixture
def reranker():
    with Reranker(HashingEncoder(), store="memory://", store_settings=StoreSettings(store_text=True)) as reranker:
        yield reranker


def log_odds(ranking):
    return np.array([math.log(score / (1.0 - score)) for score in ranking.scores])


def unexplained(ranking):
    """Return what the sums leave of the differences between the scores' log-odds."""
    rest = log_odds(ranking) - ranking.explanation().total
    return np.ptp(rest)


def named(ranking):
    return {one.ranking_id for each in ranking.explanation().questions for one in each}


class Fixed:
    """Explains everything alike."""

    def __init__(self, explanation):
        self._explanation = explanation

    def explanation(self, ranking):
        return self._explanation


class TestShares:
    def test_of_a_cold_ranking_add_up_to_what_moved_each_document(self, reranker):
        for options in ({}, {"prior_scores": [3, 1, 4, 1, 5, 9]}, {"prior_scores": [1] * 6}):
            ranking = ask(reranker, **options)
            assert np.ptp(ranking.explanation().total) > 1
            assert unexplained(ranking) < 1e-4

    def test_of_a_learned_ranking_add_up_to_what_moved_each_document(self, reranker):
        teach(reranker)
        ranking = ask(reranker)

        assert ranking.ids[0] == "cards"
        assert ranking.explanation().shares["association"][0] > 1
        assert unexplained(ranking) < 1e-4

    def test_after_silence_others_stand_behind_the_first_document_and_the_shares_say_why(self, reranker):
        alike = {"prior_scores": [1] * len(TEXTS)}
        teach(reranker, times=30, **alike)
        before = [ask(reranker, top_n=3, **alike) for _ in range(2)][-1]
        for turn in range(70):  # all that is answered meanwhile is about something else
            reranker.feedback(ask(reranker, ELSEWHERE[turn % len(ELSEWHERE)], **alike), helpful=["interest"])
        after = ask(reranker, top_n=3, **alike)

        assert before.ids[0] == after.ids[0] == "cards"
        assert set(before.ids) != set(after.ids)
        everything = ask(reranker, **alike)
        behind = dict(zip(everything.ids, everything.explanation().shares["rejection"], strict=True))
        rest = [behind[name] for name in IDS if name not in before.ids]
        assert max(behind[name] for name in before.ids[1:]) < min(rest) - 1, "they stood there in vain"
        assert unexplained(everything) < 1e-4

    def test_add_up_in_a_session_too(self, reranker):
        teach(reranker, session="monday")
        ranking = ask(reranker, session="monday")

        assert ranking.explanation().shares["narrative"].any()
        assert unexplained(ranking) < 1e-4

    def test_add_up_where_a_vector_cannot_be_used(self, reranker):
        rows = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
        rows[2] = np.nan
        asked = np.random.default_rng(1).standard_normal(64)

        ranking = ask(reranker, vectors=rows, query_vector=asked)

        assert unexplained(ranking) < 1e-4
        assert ranking.explanation().shares["dense"][ranking.ids.index("cards")] == pytest.approx(0.0, abs=1e-6)

    def test_add_up_with_a_scorer(self):
        with Reranker(HashingEncoder(), store="memory://", scorer=lambda _, texts: list(map(len, texts))) as reranker:
            teach(reranker)
            ranking = ask(reranker)

        assert ranking.explanation().shares["scorer"].any()
        assert unexplained(ranking) < 1e-4

    def test_where_all_candidates_are_alike_are_nothing(self, reranker):
        ranking = reranker.rerank("card", ["the same"] * 3, ids=["a", "b", "c"], prior_scores=[1, 1, 1])

        assert not ranking.explanation().total.any()
        assert "sum" in ranking.explain()

    def test_of_learning_are_none_without_proof_and_the_table_says_so(self, reranker):
        teach(reranker, times=2)
        ranking = ask(reranker)

        assert set(ranking.explanation().shares) == {"prior", "dense", "lexical", "narrative"}
        assert "what was learned has not been proven yet, so it has no say" in ranking.explain()

    def test_of_learning_are_none_for_a_question_far_from_all_remembered_ones(self, reranker):
        teach(reranker)
        ranking = ask(reranker, "zebra crossing")

        assert ranking.explanation().learned == 0
        assert "nothing that was learned is near enough to this question" in ranking.explain()


class TestRememberedQuestions:
    def test_are_named_by_ranking_and_text_with_what_the_document_got(self, reranker):
        teach(reranker)
        (first, *_) = ask(reranker).explanation().questions
        known = {one.event.ranking_id: one.event.ranking.query_text
                 for one in reranker.store.read() if hasattr(one.event, "rewards")}

        assert first
        assert all(known[one.ranking_id] == one.text for one in first)
        assert {(one.reward, one.helped) for one in first} == {(1.0, True)}
        assert sum(one.share for one in first) <= 1 + 1e-9
        assert first[0].text in ask(reranker).explain()

    def test_stand_with_their_own_cosine(self, reranker):
        teach(reranker)
        (first, *_) = ask(reranker).explanation().questions
        now = reranker.encoder.embed_query(AGAIN)

        for one in first:
            then = reranker.encoder.embed_query(one.text)
            cosine = np.dot(now, then) / np.linalg.norm(now) / np.linalg.norm(then)
            assert one.similarity == pytest.approx(cosine, abs=1e-3)

    def test_have_no_text_where_the_store_keeps_none(self):
        with Reranker(HashingEncoder(), store="memory://") as reranker:
            teach(reranker)
            ranking = ask(reranker)
            (first, *_) = ranking.explanation().questions
            assert first
            assert {one.text for one in first} == {None}
            assert ASKED[0] not in ranking.explain()

    def test_that_a_document_did_not_help_speak_against_it(self, reranker):
        for turn in range(12):
            ranking = ask(reranker, ASKED[turn % 3])
            reranker.feedback(ranking, helpful=["cards"], unhelpful=["hours"])
        ranking = ask(reranker)
        against = [one for one in ranking.explanation().questions[ranking.ids.index("hours")] if not one.helped]

        assert {one.reward for one in against} == {-1.0}
        assert "against it" in ranking.explain()

    def test_of_another_namespace_are_never_named(self, reranker):
        teach(reranker, namespace="a")
        teach(reranker, namespace="b")
        of_a = {one.event.ranking_id for one in reranker.store.read(namespace="a")}
        ranking = ask(reranker, namespace="a")

        assert named(ranking)
        assert named(ranking) <= of_a

    def test_are_the_same_after_a_start_from_a_snapshot(self):
        store = MemoryStore()
        settings = StoreSettings(snapshot_every=1)
        with Reranker(HashingEncoder(), store=store, store_settings=settings) as one:
            teach(one)
            wanted = named(ask(one))
        assert store.load_snapshot("default", fold_name(one.settings)) is not None
        with Reranker(HashingEncoder(), store=store, store_settings=settings) as two:
            assert named(ask(two)) == wanted != set()


    def test_of_a_document_that_changed_are_named_by_the_one_that_took_its_place(self, reranker, monkeypatch):
        monkeypatch.setattr(changes, "LIMIT", 4.0)  # so few questions are learned anew before the alarm
        monkeypatch.setattr(successors, "MAJORITY", 0.3)
        told = teach(reranker, times=60)
        teach(reranker, times=8, helpful="lost")

        ranking = ask(reranker)
        named = ranking.explanation().questions[ranking.ids.index("lost")]
        assert ranking.ids[0] == "lost"
        assert {one.text for one in named} <= set(ASKED)
        assert {(one.helped, one.reward) for one in named} == {(True, 1.0)}
        rewarded = {ranking.ranking_id for ranking in told}
        assert any(one.ranking_id in rewarded for one in named), "it was another that was rewarded then"


class TestLater:
    def test_the_explanation_is_still_that_of_the_ranking_when_more_has_been_learned(self, reranker):
        teach(reranker)
        ranking = ask(reranker)
        before = ranking.explanation()

        teach(reranker, times=30, helpful="lost")
        after = ranking.explanation()

        assert {name: values.tolist() for name, values in after.shares.items()} == {
            name: values.tolist() for name, values in before.shares.items()}
        assert after.questions == before.questions
        assert after.notes == (*before.notes, "30 more feedbacks have come in since this was ranked")

    def test_a_question_that_made_room_is_left_out_and_never_mistaken_for_a_newer_one(self):
        settings = RerankSettings(questions_per_document=4)
        with Reranker(HashingEncoder(), store="memory://", settings=settings) as reranker:
            teach(reranker)
            ranking = ask(reranker)
            known = {one.event.ranking_id for one in reranker.store.read()}

            teach(reranker, times=12)
            explanation = ranking.explanation()

        assert named(ranking) <= known
        assert "some remembered questions have made room for newer ones since, and are not named" in explanation.notes

    @pytest.mark.parametrize("erasure", [{"namespace": "default"}, {"session": "monday"}, {"document_ids": ["cards"]}])
    def test_what_was_erased_is_never_named_whoever_erased_it(self, erasure):
        store = MemoryStore()
        settings = StoreSettings(store_text=True)
        with (
            Reranker(HashingEncoder(), store=store, store_settings=settings) as one,
            Reranker(HashingEncoder(), store=store, store_settings=settings) as other,
        ):
            teach(one)
            teach(one, session="monday")
            ranking = ask(one)
            of_monday = {each.event.ranking_id for each in one.store.read()
                         if hasattr(each.event, "session") and each.event.session == "monday"}
            gone = of_monday if "session" in erasure else named(ranking)
            assert named(ranking) & gone

            other.forget(**erasure)

            assert named(ranking) & gone == set()
            assert "something was erased since; what is gone is not shown" in ranking.explain()

    def test_a_closed_store_leaves_the_shares(self, reranker):
        teach(reranker)
        ranking = ask(reranker)
        shares = ranking.explanation().total.tolist()

        reranker.close()

        assert ranking.explanation().total.tolist() == shares
        assert "the store cannot be asked, so remembered questions may be missing" in ranking.explain()

    def test_a_failing_store_leaves_the_shares(self):
        store = FailingStore(MemoryStore())
        with Reranker(HashingEncoder(), store=store) as reranker:
            teach(reranker)
            ranking = ask(reranker)
            store.fail()
            text = ranking.explain()
            store.recover()

        assert "the store cannot be asked" in text

    def test_a_ranking_keeps_neither_memory_nor_store_alive(self):
        reranker = Reranker(HashingEncoder(), store="memory://")
        teach(reranker)
        ranking, store = ask(reranker), weakref.ref(reranker.store)
        reranker.close()
        del reranker
        gc.collect()

        assert store() is None
        assert "the reranker is gone, so remembered questions cannot be named" in ranking.explain()


class TestCopies:
    def test_a_pickled_ranking_shows_its_signals_instead(self, reranker):
        teach(reranker)
        ranking = ask(reranker)
        moved = pickle.loads(pickle.dumps(ranking))

        assert moved.explanation() is None
        assert moved.explain().splitlines()[1].split() == [
            "rank", "id", "was", "score", "prior", "dense", "lexical", "narrative", "pheromone", "association"]
        assert "values of the signals, not their shares" in moved.explain()
        assert (moved.ids, moved.scores) == (ranking.ids, ranking.scores)

    @pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, replace])
    def test_a_copy_in_this_process_explains_itself_alike(self, copied, reranker):
        teach(reranker)
        ranking = ask(reranker)

        assert copied(ranking).explain() == ranking.explain()

    def test_the_first_ranks_alone_are_explained_as_in_the_whole(self, reranker):
        teach(reranker)
        ranking = ask(reranker)

        assert ranking.first(2).explanation().total.tolist() == ranking.explanation().total.tolist()[:2]
        assert ranking.first(2).ids == ranking.ids[:2]


class TestTables:
    def test_have_a_column_for_every_signal_that_spoke_and_name_the_others(self, reranker):
        ranking = ask(reranker, "block a card")
        caption, header, *lines = ranking.explain().splitlines()

        assert ranking.ranking_id in caption
        assert header.split() == ["rank", "id", "was", "score", "sum", "prior", "dense", "lexical"]
        assert [line.split()[1] for line in lines[:6]] == list(ranking.ids)
        assert lines[6:] == [
            "sum: log-odds over a document average in every signal (of 6 candidates), then shares in it",
            "less than 0.02: narrative",
        ]

    def test_of_nothing_are_empty(self, reranker):
        assert reranker.rerank("q", []).explain().splitlines()[1].split() == ["rank", "id", "was", "score"]

    def test_in_notebooks_escape_what_users_wrote(self, reranker):
        for turn in range(12):
            ranking = ask(reranker, f"{ASKED[turn % 3]} <i>now</i>")
            reranker.feedback(ranking, helpful=["cards"])
        shown = ask(reranker, f"{AGAIN} <i>now</i>")._repr_html_()

        assert "&lt;i&gt;now" in shown
        assert "<i>" not in shown
        assert "&lt;b&gt;" in reranker.rerank("q", ["t"], ids=["<b>"])._repr_html_()

    def test_say_when_nobody_answered(self, reranker):
        ranking = ask(reranker)
        explanation = ranking.explanation()
        silence = Remembered("r1", None, similarity=0.9, reward=0.0, share=0.5, helped=False)
        explainer = Fixed(replace(explanation, questions=((silence,), *explanation.questions[1:])))

        assert "      50% against it: cosine 0.90, nobody answered, ranking r1" in (
            replace(ranking, explainer=explainer).explain().splitlines())

    def test_say_when_chance_had_a_hand_in_it(self):
        with Reranker(HashingEncoder(), store="memory://", settings=RerankSettings(exploration=0.5)) as reranker:
            assert "exploration was on" in ask(reranker).explain()
        with Reranker(HashingEncoder(), store="memory://", settings=RerankSettings(diversity=0.5)) as reranker:
            assert "diversity was on" in ask(reranker).explain()
        with Reranker(HashingEncoder(), store="memory://", settings=RerankSettings(learning=False)) as reranker:
            assert "learning is switched off by its setting" in ask(reranker).explain()


def test_ranking_asks_the_store_for_nothing_that_only_an_explanation_needs(monkeypatch):
    store = MemoryStore()
    with Reranker(HashingEncoder(), store=store) as reranker:
        teach(reranker)
        ask(reranker)
        reads = []
        original = store.read
        monkeypatch.setattr(store, "read", lambda **where: reads.append(where) or original(**where))

        ranking = ask(reranker)
        assert reads == []
        ranking.explain()
        assert reads


def test_both_adapters_explain_what_their_core_does(reranker):
    from langchain_core.documents import Document
    from llama_index.core.schema import NodeWithScore, TextNode

    teach(reranker)
    documents = [Document(id=name, page_content=text) for name, text in TEXTS.items()]
    nodes = [NodeWithScore(node=TextNode(id_=name, text=text)) for name, text in TEXTS.items()]

    for ranking in (
        NeuralCacheCompressor.from_reranker(reranker, top_n=6).rank(documents, AGAIN),
        NeuralCachePostprocessor.from_reranker(reranker, top_n=6).rank(nodes, AGAIN),
    ):
        assert ranking.explanation().total.tolist() == pytest.approx(ask(reranker).explanation().total.tolist())
        assert ASKED[0] in ranking.explain()
