"""``replay``: the fold is the live one, the estimates are unbiased, and doubts are said in words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralcache_plugins import Reranker, RerankSettings, open_store
from neuralcache_plugins.contracts import FeedbackGiven, RankingServed, Recorded, TelemetryStore
from neuralcache_plugins.errors import InvalidInputError
from neuralcache_plugins.evaluation import Replay, Stream, replay, text_ranker
from neuralcache_plugins.evaluation.counterfactual import counterfactual
from neuralcache_plugins.evaluation.rescoring import recast
from neuralcache_plugins.evaluation.uncertainty import Array, Bootstrap
from neuralcache_plugins.evaluation.verdicts import _is_enough
from neuralcache_plugins.settings import StoreSettings
from neuralcache_plugins.testing import HashingEncoder

QUICK = Bootstrap(resamples=20)


def log_of(
    stream: Stream, *, shown: int = 5, asked: int | None = None, namespace: str = "default", top_only: bool = False,
    store: TelemetryStore | None = None, settings: RerankSettings | None = None,
) -> tuple[TelemetryStore, Any]:
    """Fill a store by asking the stream; return it with what the live state knows at the end.

    Feedback names the right document where it is shown, or (``top_only``) only where it came first.
    """
    store = store or open_store("memory://")
    now = iter(range(1_700_000_000, 1_800_000_000, 60))
    with Reranker(store=store, settings=settings, clock=lambda: float(next(now)), namespace=namespace) as reranker:
        for at in range(asked or len(stream)):
            ranking = reranker.rerank(
                stream.questions[at], stream.texts, ids=stream.ids, top_n=shown, prior_scores=[0.0] * len(stream.ids),
                query_vector=stream.question_vectors[at], vectors=stream.document_vectors,
            )
            right = stream.ids[stream.right[at][0]]
            if right in ranking.ids and (not top_only or ranking.ids[0] == right):
                reranker.feedback(ranking, helpful=[right])
        reranker.flush()
        return store, reranker.stats().namespace


def as_cold(ranking: RankingServed) -> Sequence[float]:
    return ranking.cold


@pytest.fixture(scope="module")
def stream() -> Stream:
    return Stream.synthetic(questions=400, documents=20, width=16)


@pytest.fixture(scope="module")
def logged(stream: Stream) -> tuple[TelemetryStore, Any]:
    return log_of(stream)


@pytest.fixture(scope="module")
def same(logged: tuple[TelemetryStore, Any]) -> Replay:
    return replay(logged[0])


def test_the_same_settings_know_what_the_live_state_knows(logged: tuple[TelemetryStore, Any], same: Replay) -> None:
    """Weights and trust of every encoder, to the last digit."""
    live = logged[1]

    assert same.learned["default"].weights == live.weights
    assert same.learned["default"].trust == live.trust
    assert (same.rankings, same.feedback) == (live.rankings, live.feedback)


def test_the_same_settings_give_nearly_the_order_that_was_shown(same: Replay) -> None:
    """Not exactly: what other candidates remember is not in the log."""
    agree = same.values["RR"][:, 0] == same.values["RR"][:, 2]

    assert agree.mean() > 0.97
    assert abs(same.gains["over logged"]["RR"].value) < 0.01
    assert same.gains["over cold"]["RR"].above_zero
    assert any("better than in the cold order" in claim for claim in same.claims)


def test_without_learning_the_replayed_order_is_the_cold_one(logged: tuple[TelemetryStore, Any]) -> None:
    found = replay(logged[0], settings=RerankSettings(learning=False))

    assert np.array_equal(found.values["RR"][:, 1], found.values["RR"][:, 2])
    assert found.gains["over logged"]["RR"].below_zero
    assert found.replayed == "learning False"


def test_reading_writes_nothing(logged: tuple[TelemetryStore, Any], same: Replay) -> None:
    store = logged[0]
    before = store.sign()

    again = replay(store)

    assert store.sign() == before
    assert again.as_dict() == same.as_dict()


def test_any_function_of_a_logged_ranking_is_a_ranker(logged: tuple[TelemetryStore, Any], same: Replay) -> None:
    found = replay(logged[0], ranker=as_cold)

    assert np.array_equal(found.values["RR"][:, 1], found.values["RR"][:, 2])
    assert found.learned == {}
    assert found.replayed == "another ranker"


def test_a_ranker_that_learns_is_told_everything_in_order(logged: tuple[TelemetryStore, Any]) -> None:
    """It scores each ranking before it hears of it, and each event comes once."""

    class Popular:
        def __init__(self) -> None:
            self.helped: dict[str, float] = {}
            self.heard: list[int] = []

        def score(self, ranking: RankingServed) -> list[float]:
            return [self.helped.get(name, 0.0) for name in ranking.document_ids]

        def learn(self, recorded: Recorded) -> None:
            self.heard.append(recorded.position)
            if isinstance(recorded.event, FeedbackGiven):
                for name, reward in recorded.event.rewards:
                    self.helped[name] = self.helped.get(name, 0.0) + reward

    popular = Popular()
    found = replay(logged[0], ranker=popular)

    assert popular.heard == sorted(set(popular.heard))
    assert len(popular.heard) == found.rankings + found.feedback
    assert sum(popular.helped.values()) == found.feedback


def test_a_ranker_of_texts_needs_texts() -> None:
    store = open_store("memory://")
    texts = ["a lost card", "reset the password", "fees for transfers"]
    for keep in (True, False):
        settings = StoreSettings(store_text=keep)
        with Reranker(HashingEncoder(), store=store, store_settings=settings, namespace=str(keep)) as reranker:
            reranker.feedback(reranker.rerank("password reset", texts, ids=list("abc")), helpful=["c"])

    def last_first(query: str, texts: list[str]) -> list[int]:
        return [texts.index("fees for transfers")]

    found = replay(store, ranker=text_ranker(last_first), namespace="True")

    assert found.values["RR"][0, 2] == 1.0
    with pytest.raises(InvalidInputError, match=r"was recorded without text: only logs made with store_text=True"):
        replay(store, ranker=text_ranker(last_first), namespace="False")


def test_one_namespace_or_several(stream: Stream) -> None:
    store, _ = log_of(stream, asked=20, namespace="shop")
    log_of(stream, asked=30, namespace="bank", store=store)

    assert (replay(store).namespaces, replay(store).rankings) == (("bank", "shop"), 50)
    assert replay(store, namespace="shop").rankings == 20
    assert replay(store, namespace=["bank"]).rankings == 30
    with pytest.raises(InvalidInputError, match=r"^memory:// has no namespace 'shops'; it has: 'bank', 'shop'$"):
        replay(store, namespace="shops")


def test_a_setting_that_a_log_knows_nothing_of_is_left_out_aloud(
    logged: tuple[TelemetryStore, Any], same: Replay
) -> None:
    found = replay(logged[0], settings=RerankSettings(diversity=0.5))

    assert found.means == same.means
    assert found.replayed == "the same settings"
    assert found.warnings[-1] == "A log cannot tell what diversity would have changed: the change was left out."


# other weights of the cold order

WORDS = ["password", "reset", "card", "lost", "fee", "transfer", "branch", "opening", "hours", "loan", "savings"]
weights = st.sampled_from([0.1, 0.3, 0.8, 2.0])


@settings(max_examples=25, deadline=None)
@given(st.tuples(weights, weights), st.tuples(weights, weights), st.integers(0, 999), st.booleans())
def test_recasting_gives_the_order_that_other_weights_would_have_given(
    old: tuple[float, float], new: tuple[float, float], seed: int, scored: bool
) -> None:
    """Among the documents shown, and recovered from the log alone, up to one scale and shift."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, 6)) for _ in range(12)]
    query = " ".join(rng.choice(WORDS, 3))
    prior = rng.standard_normal(12).tolist() if scored else None
    before, after = (RerankSettings(lexical_weight=one, dense_weight=two) for one, two in (old, new))
    served = {}
    for name, chosen, shown in (("before", before, 6), ("after", after, 12)):
        with Reranker(HashingEncoder(), store="memory://", settings=chosen) as reranker:
            served[name] = reranker.rerank(query, texts, ids=[str(at) for at in range(12)], prior_scores=prior,
                                           top_n=shown).served
    logged, wanted = served["before"], served["after"]
    assert logged is not None and wanted is not None

    found = recast(logged, settings=after, logged_with=before)

    if found is None:
        return
    cold = dict(zip(wanted.document_ids, wanted.cold, strict=True))
    expected = np.log(np.exp([cold[name] for name in logged.document_ids]) - 1e-4 + 1e-9)
    certain = np.array([cold[name] for name in logged.document_ids]) > np.log(5e-4)
    sure = certain & (found > np.log(5e-4))
    if sure.sum() >= 3 and np.ptp(expected[sure]) > 0.1:
        assert np.corrcoef(np.log(np.exp(found[sure]) - 1e-4), expected[sure])[0, 1] > 0.999


@pytest.mark.parametrize("session", [None, "talk"])
def test_recasting_usually_succeeds(session: str | None) -> None:
    """On ordinary rankings with scores the log determines the cold order under other weights."""
    rng = np.random.default_rng(0)
    store = open_store("memory://")
    texts = [" ".join(rng.choice(WORDS, 6)) for _ in range(12)]
    with Reranker(HashingEncoder(), store=store) as reranker:
        for _ in range(40):
            ranking = reranker.rerank(" ".join(rng.choice(WORDS, 3)), texts, top_n=6, session=session,
                                      prior_scores=rng.standard_normal(12).tolist())
            reranker.feedback(ranking, helpful=[ranking.ids[1]])

    found = replay(store, settings=RerankSettings(lexical_weight=3.0))
    wrong = replay(store, settings=RerankSettings(lexical_weight=3.0), logged_with=RerankSettings(dense_weight=0.0))

    assert any("was recomputed among the documents shown" in line for line in found.warnings)
    assert not any("their logged cold order was kept" in line for line in found.warnings)
    assert any("their logged cold order was kept" in line for line in wrong.warnings)


# counterfactual estimates


def world(rng: np.random.Generator, n: int, actions: int = 4, epsilon: float = 0.3) -> tuple[dict[str, Array], float]:
    """Draw n logged choices of an exploring policy, and tell the other policy's true value."""
    means = rng.random((n, actions))
    logging, other = means.argmax(axis=1), rng.integers(actions, size=n)
    random = rng.random(n) < epsilon
    chosen = np.where(random, rng.integers(actions, size=n), logging)
    propensities = epsilon / actions + (1 - epsilon) * (chosen == logging)
    row = np.arange(n)
    rewards = (rng.random(n) < means[row, chosen]).astype(float)
    drawn = {
        "rewards": rewards, "propensities": propensities, "matches": chosen == other,
        "logged_features": means[row, chosen][:, None], "chosen_features": means[row, other][:, None],
    }
    return drawn, float(means[row, other].mean())


def test_the_estimates_are_unbiased_and_the_doubly_robust_one_is_steadier() -> None:
    """Over 300 logs the mean error vanishes; what the logged policy earned is far from it."""
    rng = np.random.default_rng(0)
    errors = {"ips": [], "snips": [], "doubly_robust": [], "logged": []}  # type: dict[str, list[float]]
    for _ in range(300):
        drawn, truth = world(rng, 250)
        found = counterfactual(**drawn, bootstrap=QUICK)
        for name, each in errors.items():
            each.append(getattr(found, name).value - truth)

    off = {name: abs(np.mean(each)) for name, each in errors.items()}
    spread = {name: np.std(each) for name, each in errors.items()}
    assert off["ips"] < 4 * spread["ips"] / 300**0.5
    assert off["snips"] < 4 * spread["snips"] / 300**0.5 + 0.002
    assert off["doubly_robust"] < 4 * spread["doubly_robust"] / 300**0.5
    assert off["logged"] > 0.1
    assert spread["doubly_robust"] < 0.9 * min(spread["ips"], spread["snips"])


def test_the_intervals_hold_the_truth() -> None:
    rng = np.random.default_rng(1)
    held: dict[str, list[bool]] = {"ips": [], "snips": [], "doubly_robust": []}
    for at in range(150):
        drawn, truth = world(rng, 300)
        found = counterfactual(**drawn, bootstrap=Bootstrap(0.9, 200, at))
        for name, each in held.items():
            each.append(getattr(found, name).low <= truth <= getattr(found, name).high)

    assert all(np.mean(each) > 0.8 for each in held.values())


def test_the_effective_sample_size_by_hand() -> None:
    """Weights 2, 4 and 4: (10)^2 / (4 + 16 + 16)."""
    found = counterfactual(
        np.array([1.0, 0.0, 1.0, 1.0]), np.array([0.5, 0.25, 0.25, 0.9]), np.array([True, True, True, False]),
        np.zeros((4, 1)), np.zeros((4, 1)), bootstrap=QUICK,
    )

    assert found.effective_sample_size == pytest.approx(100 / 36)
    assert found.largest_weight_share == pytest.approx(0.4)
    assert found.matches == 3
    assert found.ips.value == pytest.approx((2 + 4) / 4)
    assert found.snips.value == pytest.approx(6 / 10)


def test_a_propensity_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"^propensities must be in \(0, 1\]$"):
        counterfactual(np.ones(1), np.zeros(1), np.ones(1, dtype=bool), np.zeros((1, 1)), np.zeros((1, 1)))


def test_exploration_tells_what_the_cold_order_would_have_earned(stream: Stream) -> None:
    """All candidates shown, rewards on the first place alone: the truth is known, and the estimates find it."""
    store, _ = log_of(stream, shown=20, top_only=True, settings=RerankSettings(exploration=0.5))
    rows = [one.event for one in store.read(limit=10_000) if isinstance(one.event, RankingServed)]
    truth = np.mean([event.document_ids[int(np.argmax(event.cold))] == stream.ids[stream.right[at][0]]
                     for at, event in enumerate(rows)])

    found = replay(store, ranker=as_cold).counterfactual

    assert found is not None
    assert found.rankings == 400
    for estimate in (found.ips, found.snips, found.doubly_robust):
        assert estimate.low - 0.02 <= truth <= estimate.high + 0.02
    assert found.effective_sample_size > 30


# doubts


def test_a_log_without_exploration_claims_nothing_counterfactual(same: Replay) -> None:
    assert same.counterfactual is None
    assert same.counterfactual_table() is None
    assert any(line.startswith("No exploration was recorded") for line in same.warnings)


def test_rewards_on_the_first_place_alone_claim_nothing(stream: Stream) -> None:
    store, _ = log_of(stream, top_only=True, asked=200)

    found = replay(store)

    assert any(line.startswith("100% of the rewards went to the first document shown") for line in found.warnings)
    assert not any("Reciprocal rank" in claim for claim in found.claims)


def test_little_feedback_claims_nothing(stream: Stream) -> None:
    store, _ = log_of(stream, asked=15)

    found = replay(store)

    assert found.claims == ()
    assert any("below 30 no gain is claimed" in line for line in found.warnings)


def test_a_small_effective_sample_claims_nothing(stream: Stream) -> None:
    """Where chance hardly ever chose what the other ranker would have."""
    store, _ = log_of(stream, asked=60, settings=RerankSettings(exploration=0.05))

    found = replay(store, ranker=lambda ranking: [-value for value in ranking.cold])

    assert any("too little for a counterfactual claim" in line for line in found.warnings)
    assert any(line.startswith("Of the candidates 25% were shown") for line in found.warnings)
    assert not any("explored rankings" in claim for claim in found.claims)


def test_an_empty_log_says_so(tmp_path: Path) -> None:
    found = replay(open_store("memory://"))

    assert found.warnings == ("The log holds no rankings: nothing can be said.",)
    assert len(found) == 0
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["graded"] == 0
    found.plot()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"settings": RerankSettings(), "ranker": as_cold}, r"^replay takes settings or a ranker, not both$"),
        ({"ranker": 3}, r"^ranker must have score\(ranking\) and learn\(recorded\), or be a callable"),
        ({"ranker": lambda ranking: [1.0]}, r"^the ranker must give one finite number per shown document: 5 were "),
    ],
    ids=["both", "number", "too few"],
)
def test_what_cannot_be_replayed_is_refused(
    logged: tuple[TelemetryStore, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        replay(logged[0], **options)


def test_what_people_and_programs_see(same: Replay, tmp_path: Path) -> None:
    same.to_csv(tmp_path / "all.csv")
    same.to_json(tmp_path / "all.json")
    above, below = same.plot().axes

    assert len((tmp_path / "all.csv").read_text().splitlines()) == 1 + len(same)
    assert json.loads((tmp_path / "all.json").read_text())["claims"] == list(same.claims)
    assert above.get_xlabel() == "rankings with feedback (count, in the order of the log)"
    assert below.get_xlabel() == "gain of the replayed order (difference of means)"
    assert "Warning: No exploration" in same._repr_html_()


def test_no_counterfactual_claim_where_chance_never_tried_the_other_choice() -> None:
    """Where both rankers agree there is plenty of data, and where they differ there is none: that is not enough."""
    rng = np.random.default_rng(1)
    agree = rng.random(600) < 0.6
    found = counterfactual(
        (rng.random(600) < np.where(agree, 0.7, 0.3)).astype(float), np.where(agree, 0.95, 0.9), agree,
        rng.random((600, 2)), rng.random((600, 2)), bootstrap=QUICK,
    )

    assert found.effective_sample_size > 300
    assert found.mean_weight == pytest.approx(0.6 / 0.95, abs=0.05)
    assert not _is_enough(SimpleNamespace(counterfactual=found))
