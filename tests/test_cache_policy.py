"""One namespace's decisions: nothing before proof, audits at random, retreat on alarm, a state that is a fold; and
calibration, which proves from a log as much as it can, and no more.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralcache_plugins.errors import DimensionMismatchError, InvalidInputError
from neuralcache_plugins.semantic_cache.calibration import Logged, calibrate
from neuralcache_plugins.semantic_cache.certificate import Drift, Surprise
from neuralcache_plugins.semantic_cache.features import FEATURES, Neighbour
from neuralcache_plugins.semantic_cache.parsing import Question, parse
from neuralcache_plugins.semantic_cache.policy import Decision, Label, Policy
from neuralcache_plugins.semantic_cache.proof import after, prove
from neuralcache_plugins.settings import CacheSettings

TOPICS = [
    "card arrival", "password reset", "exchange rate", "top up limit", "lost phone", "refund status", "virtual card",
    "direct debit", "cash withdrawal", "account closure",
]
FRAMES = ["tell me about {}", "what of my {}", "{} please", "I have a question about {}", "help with {} now"]


@dataclass
class World:
    """Draws (question, vector, answer); ``shift()`` changes the answers of half of the topics."""

    seed: int = 0
    noise: float = 0.5
    answers: list[int] = field(default_factory=lambda: list(range(len(TOPICS))))

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.centres = np.linalg.qr(np.random.default_rng(99).normal(size=(24, 24)))[0][: len(TOPICS)]

    def draw(self) -> tuple[str, np.ndarray, int]:
        topic = int(self.rng.integers(len(TOPICS)))
        text = self.rng.choice(FRAMES).format(TOPICS[topic]) + f" w{self.rng.integers(10_000)}"
        vector = self.centres[topic] + self.noise * self.rng.normal(size=24) / np.sqrt(24)
        return text, (vector / np.linalg.norm(vector)).astype(np.float32), self.answers[topic]

    def shift(self) -> None:
        self.answers = [answer + 100 * (at % 2) for at, answer in enumerate(self.answers)]


@dataclass
class Play:
    """Plays a world through a policy and keeps what happened."""

    world: World
    policy: Policy
    now: float = 0.0
    entries: list[tuple[Question, np.ndarray, int, float]] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    wrong: list[bool] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    alarms: list[int] = field(default_factory=list)

    def ask(self, times: int) -> Play:
        for _ in range(times):
            self._ask()
        return self

    def _ask(self) -> None:
        self.now += 1.0
        text, vector, answer = self.world.draw()
        question = parse(text)
        decision = self.policy.decide(question, self._near(vector), now=self.now, coin=float(self.world.rng.random()))
        self.decisions.append(decision)
        self.wrong.append(decision.entry is not None and self.entries[decision.entry][2] != answer)
        if decision.judge:
            label = decision.label(right=self.entries[decision.candidate][2] == answer, at=self.now)
            self.labels.append(label)
            if self.policy.learn(label):
                self.alarms.append(len(self.decisions))
        if decision.entry is None or decision.audit:
            self.entries.append((question, vector, answer, self.now + 0.5))
            self.policy.rarity.note(question)

    def _near(self, vector: np.ndarray) -> list[Neighbour]:
        usable = [at for at, entry in enumerate(self.entries) if entry[3] > self.policy.quarantined_until]
        cosines = np.array([self.entries[at][1] for at in usable] or np.zeros((0, 24))) @ vector
        return [
            Neighbour(usable[at], float(cosines[at]), self.entries[usable[at]][0], self.entries[usable[at]][2],
                      created_at=self.entries[usable[at]][3])
            for at in np.argsort(-cosines, kind="stable")[:8].tolist()
        ]

    @property
    def hits(self) -> np.ndarray:
        return np.array([decision.entry is not None for decision in self.decisions])


EASY = CacheSettings(max_error=0.1, confidence=0.9, audit_rate=0.2)


@pytest.fixture(scope="module")
def played() -> Play:
    return Play(World(), Policy(EASY)).ask(1_200)


def serving() -> Policy:
    """Return a policy that serves whatever no guard vetoes."""
    policy = Policy(EASY)
    policy.tests.certify(1)
    policy.cuts[:] = -100.0
    return policy


def near(*texts: str, created_at: float = 1.0) -> list[Neighbour]:
    return [Neighbour(at, 0.9 - at / 100, parse(text), text, created_at=created_at) for at, text in enumerate(texts)]


def test_nothing_is_served_before_it_is_certified(played: Play) -> None:
    first = int(played.hits.argmax())

    assert first > 50
    assert played.decisions[first - 1].reasons[0] == "not certified yet: only exact repeats are answered"


def test_a_learned_policy_serves_most_repeats_and_is_wrong_less_often_than_allowed(played: Play) -> None:
    later = slice(600, None)

    assert played.hits[later].mean() > 0.5
    assert np.mean(np.array(played.wrong)[played.hits]) < EASY.max_error


def test_hits_are_audited_at_the_rate_that_was_set_and_misses_always(played: Play) -> None:
    hits = [decision for decision in played.decisions if decision.entry is not None]

    assert np.mean([decision.audit for decision in hits]) == pytest.approx(EASY.audit_rate, abs=0.06)
    misses = [decision for decision in played.decisions if decision.entry is None and decision.candidate is not None]
    assert all(decision.judge for decision in misses)


def test_after_a_wrong_answer_every_second_is_audited_until_enough_were_right(played: Play) -> None:
    policy = Policy.unpack(*played.policy.pack(), EASY)
    policy.drift, policy.surprise = Drift(policy.limit), Surprise(policy.limit)
    right = next(label for label in played.labels if label.served and label.right)
    assert policy.rate == EASY.audit_rate
    policy.learn(replace(right, right=False))
    assert policy.rate == 0.5
    question, entries = parse(played.world.draw()[0]), near("card arrival please")
    assert policy.decide(question, entries, now=5.0, coin=0.4).rate == 0.5
    for _ in range(8):
        policy.learn(right)

    assert policy.rate == EASY.audit_rate
    often = Policy.unpack(*played.policy.pack(), EASY.model_copy(update={"audit_rate": 0.8}))
    often.learn(replace(right, right=False))
    assert often.rate == 0.8


def test_deciding_changes_nothing() -> None:
    policy = Play(World(), Policy(EASY)).ask(150).policy
    before = policy.pack()
    question, entries = parse("tell me about card arrival"), near("card arrival please", "password reset please")

    one, other = (policy.decide(question, entries, now=5.0, coin=0.5) for _ in range(2))

    assert (one.entry, one.score, one.reasons) == (other.entry, other.score, other.reasons)
    assert same_state(before, policy.pack())


def same_state(one: tuple, other: tuple) -> bool:
    return one[0] == other[0] and all(np.array_equal(array, other[1][name]) for name, array in one[1].items())


def test_the_state_is_a_fold_over_the_labels(played: Play) -> None:
    again = Policy(EASY)
    for label in played.labels:
        again.learn(label)

    assert same_state(again.pack(), played.policy.pack())


def test_a_packed_policy_goes_on_as_if_it_had_never_stopped(played: Play) -> None:
    whole, first = Policy(EASY), Policy(EASY)
    half = len(played.labels) // 2
    for label in played.labels:
        whole.learn(label)
    for label in played.labels[:half]:
        first.learn(label)
    header, arrays = first.pack()
    second = Policy.unpack(json.loads(json.dumps(header)), arrays, EASY)
    for label in played.labels[half:]:
        second.learn(label)

    assert same_state(second.pack(), whole.pack())


def test_packed_arrays_need_no_pickle_and_share_no_memory(played: Play, tmp_path: Path) -> None:
    header, arrays = played.policy.pack()
    np.savez(tmp_path / "state.npz", **arrays)

    with np.load(tmp_path / "state.npz", allow_pickle=False) as loaded:
        assert same_state((header, dict(loaded)), (header, arrays))
    assert not any(np.shares_memory(array, played.policy.score.covariance) for array in arrays.values())


@pytest.mark.parametrize(("change", "name"), [
    ({"format": 0}, "format"), ({"features": ["cosine"]}, "features"), ({"limit": 0.3}, "limit"),
])
def test_a_state_made_under_other_terms_is_refused(played: Play, change: dict, name: str) -> None:
    header, arrays = played.policy.pack()

    with pytest.raises(InvalidInputError, match=rf"^the packed policy has another {name}; fold the labels again$"):
        Policy.unpack(header | change, arrays, EASY)


def test_after_a_shift_the_alarm_withdraws_everything_and_hits_recover() -> None:
    play = Play(World(seed=4), Policy(EASY)).ask(900)
    assert play.policy.tests.live
    play.world.shift()
    play.ask(1_500)

    assert play.alarms
    alarm = play.alarms[0]
    assert 900 < alarm <= 900 + 350
    assert not play.hits[alarm:alarm + 50].any()
    assert play.hits[-300:].mean() > 0.4
    assert play.policy.certificate(reused=1).alarms == len(play.alarms)


def near_misses(policy: Policy, labels: list[Label]) -> list[Label]:
    """Return labels that look right, as misses that no coin let count for the certificate."""
    rows = [label for label in labels if policy.scores(label.features[None])[0] > 1.0]
    return [replace(label, right=False, served=False, coin=0.99, rate=EASY.audit_rate) for label in rows]


def test_a_shift_shows_in_misses_before_any_hit_is_audited(played: Play) -> None:
    policy = Policy.unpack(*played.policy.pack(), EASY)
    audited, misses = policy.audited, near_misses(policy, played.labels)
    learned = [policy.learn(label) for label in misses[:20]]

    assert any(learned)
    assert policy.audited == audited
    assert policy.tests.live == 0
    assert policy.moves[-1].why == "alarm: surprise"
    assert policy.certificate(reused=1).history()[-1][1].endswith(" to 0: alarm: surprise")


def test_audits_that_fail_raise_the_alarm_in_their_own_name(played: Play) -> None:
    policy = Policy.unpack(*played.policy.pack(), EASY)
    policy.surprise.wrong[:], policy.surprise.counts[:] = 1e6, 1e6  # nothing surprises it
    for label in near_misses(policy, played.labels)[:20]:
        if policy.learn(replace(label, served=True, coin=0.0)):
            break

    assert policy.moves[-1].why == "alarm: audits"


def test_reports_and_labels_from_before_the_alarm_surprise_nobody(played: Play) -> None:
    policy = Policy.unpack(*played.policy.pack(), EASY)
    policy.last_alarm = 1e9
    for label in near_misses(policy, played.labels)[:50]:
        assert not policy.learn(replace(label, sampled=False))
        assert not policy.learn(replace(label, asked=5.0))

    assert policy.surprise.counts.sum() == played.policy.surprise.counts.sum()


def test_entries_from_before_the_alarm_are_not_served() -> None:
    policy = serving()
    policy.last_alarm = 10.0
    question = parse("card arrival")

    assert policy.decide(question, near("card arrival please", created_at=10.0), now=20.0, coin=0.0).entry is None
    assert policy.decide(question, near("card arrival please", created_at=11.0), now=20.0, coin=0.0).entry == 0


@pytest.mark.parametrize(("question", "entry", "reason"), [
    ("how do I enable 2FA", "how do I disable 2FA", "other meaning: enable against disable"),
    ("send 20 euros", "send 30 euros", "other number: 20 against 30"),
    ("where is Alice", "where is Bob", "other name: alic against bob"),
])
def test_a_near_miss_is_vetoed_and_told_why(question: str, entry: str, reason: str) -> None:
    decision = serving().decide(parse(question), near(entry), now=2.0, coin=0.0)

    assert decision.entry is None
    assert not decision.judge
    assert decision.reasons == (reason,)


def test_behind_a_vetoed_neighbour_the_next_one_may_serve() -> None:
    decision = serving().decide(parse("enable my card"), near("disable my card", "enable the card"), now=2.0, coin=0.9)

    assert (decision.entry, decision.audit) == (1, False)


def test_a_nearer_neighbour_that_was_vetoed_is_told_of_when_the_next_one_does_not_serve_either() -> None:
    policy = serving()
    policy.cuts[:] = 2.0

    decision = policy.decide(parse("enable my card"), near("disable my card", "order the card"), now=2.0, coin=0.9)

    assert decision.candidate == 1
    assert decision.reasons == ("score 0.500 is below the cut 0.881", "other meaning: enable against disable")


def test_without_neighbours_there_is_nothing_to_judge() -> None:
    decision = serving().decide(parse("anything"), [], now=2.0, coin=0.0)

    assert (decision.entry, decision.candidate, decision.judge) == (None, None, False)
    assert decision.reasons == ("no similar question is cached",)


def test_a_score_below_the_cut_says_so() -> None:
    policy = serving()
    policy.cuts[:] = 2.0

    decision = policy.decide(parse("card arrival"), near("password reset"), now=2.0, coin=0.0)

    assert decision.reasons[0] == "score 0.500 is below the cut 0.881"
    assert decision.judge


def test_a_report_from_outside_teaches_but_proves_nothing(played: Play) -> None:
    policy, label = Policy(EASY), next(one for one in played.labels if one.right)
    for _ in range(300):
        policy.learn(type(label)(label.features, True, True, 0.0, 1.0, 0.0, sampled=False))

    assert policy.tests.seen == policy.audited == policy.window.added == 0
    assert policy.labels == 300
    assert policy.scores(label.features[None])[0] > 2.0


def test_once_live_only_labels_under_the_audit_rate_count(played: Play) -> None:
    policy, label = Policy(EASY), played.labels[0]
    for coin in (0.1, 0.19, 0.2, 0.9):
        policy.learn(type(label)(label.features, True, False, coin, EASY.audit_rate, 0.0))

    assert policy.tests.seen == 2


def test_a_judge_that_errs_tightens_the_limit() -> None:
    assert Policy(CacheSettings(max_error=0.1, judge_error=0.3)).limit == pytest.approx(0.07)


@pytest.mark.parametrize("look", [lambda policy: policy.score.weights, lambda policy: policy.window.rows])
def test_policies_share_nothing(look: Callable[[Policy], np.ndarray]) -> None:
    assert not np.shares_memory(look(Policy(EASY)), look(Policy(EASY)))


def test_a_label_holds_the_row_that_was_decided_on(played: Play) -> None:
    assert {label.features.shape for label in played.labels} == {(len(FEATURES),)}
    assert {label.features.dtype for label in played.labels} == {np.dtype(np.float32)}


# calibration


def log(size: int, seed: int = 0, **more: float) -> list[Logged]:
    world = World(seed=seed, **more)
    return [Logged(*world.draw()) for _ in range(size)]


def slow_p_value(wrong: int, hits: int, limit: float) -> float:
    return sum(math.comb(hits, k) * limit**k * (1 - limit) ** (hits - k) for k in range(wrong + 1))


@given(capital=st.floats(1e-9, 1 - 1e-9), left=st.integers(1, 5_000), limit=st.floats(0.001, 0.5))
def test_a_bet_is_fair_whatever_it_hopes_for(capital: float, left: int, limit: float) -> None:
    right, wrong = (after(capital, mistake, left=left, limit=limit) for mistake in (False, True))

    assert 0.0 <= wrong <= capital * (1 + 1e-9)
    assert capital * (1 - 1e-9) <= right <= 1.0
    assert (1 - limit) * right + limit * wrong <= capital + 1e-12


@given(st.integers(1, 80), st.lists(st.integers(0, 79), max_size=12), st.sampled_from([0.05, 0.1, 0.3]))
def test_with_as_many_hits_as_were_foreseen_the_bets_are_the_binomial_test(
    hits: int, where: list[int], limit: float
) -> None:
    mistakes = [place in where for place in range(hits)]
    alpha, capital = 0.06, 0.06
    for done, mistake in enumerate(mistakes):
        if 0.0 < capital < 1.0:
            capital = after(capital, mistake, left=len(mistakes) - done, limit=limit)
    p_value, stricter = (slow_p_value(sum(mistakes) - less, len(mistakes), limit) for less in (0, 1))

    # at the edge a share of the sequences with one mistake more
    share = min(max((alpha - stricter) / (p_value - stricter), 0.0), 1.0)
    assert capital == pytest.approx(share, abs=1e-6)


def test_a_long_enough_log_starts_certified_and_then_keeps_its_promise() -> None:
    found = calibrate(log(600), EASY)

    assert found.policy.tests.live > 0
    assert "may serve" in str(found)
    play = Play(World(seed=7), found.policy)
    play.ask(400)
    assert play.hits[100:].mean() > 0.4
    assert np.mean(np.array(play.wrong)[play.hits]) < EASY.max_error


@pytest.mark.parametrize("size", [0, 1, 2, 40])
def test_a_short_log_certifies_nothing(size: int) -> None:
    found = calibrate(log(size), EASY)

    assert found.policy.tests.live == 0
    assert "nothing certified" in str(found)


def test_a_log_whose_answers_are_all_different_certifies_nothing() -> None:
    lines = [Logged(line.question, line.vector, at) for at, line in enumerate(log(400))]

    assert calibrate(lines, EASY).policy.tests.live == 0


def test_answers_that_are_noise_are_certified_no_more_often_than_alpha() -> None:
    """Answers err at just the allowed rate however alike the questions are: every certificate is a false one."""
    lived = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        lines = [Logged(line.question, line.vector, "yes") for line in log(300, seed, noise=0.1)]
        noisy = calibrate(lines, EASY, same=lambda cached, fresh, rng=rng: bool(rng.random() < 0.88))
        lived += noisy.policy.tests.live > 0

    assert lived <= 3


def test_a_caller_may_say_which_answers_are_the_same() -> None:
    lines = [Logged(line.question, line.vector, f"{line.answer} {at}") for at, line in enumerate(log(600))]

    found = calibrate(lines, EASY, same=lambda cached, fresh: str(cached).split()[0] == str(fresh).split()[0])

    assert found.policy.labels > 500


def test_all_certifications_offline_and_online_share_one_alpha() -> None:
    """A calibration first, labels online, an alarm, calibrations again: no share is handed out twice."""
    policy = calibrate(log(50), EASY).policy
    label = Label(np.zeros(len(FEATURES), np.float32), right=True, served=False, coin=0.0, rate=1.0, at=0.0)
    shares = [policy.alpha, 2 * policy.alpha]
    assert policy.calibrated == policy.spent == 1
    policy.learn(label)
    assert policy.alpha == shares[0]
    policy._retreat(1.0)
    assert policy.alpha is None
    policy.learn(label)
    shares.append(policy.alpha)
    for _ in range(3_000):
        shares.append(prove(policy, []).alpha)

    assert policy.alpha == shares[2]
    assert sum(shares) == pytest.approx(1 - EASY.confidence, rel=1e-3)
    assert sum(shares) <= 1 - EASY.confidence


def test_a_repeated_question_neither_teaches_nor_tests() -> None:
    """The exact tier answers it; as a second test of the same thing it would prove what is known."""
    lines = log(60)
    once, twice = calibrate(lines, EASY), calibrate([line for line in lines for _ in range(2)], EASY)

    assert len(once.judged) == len(twice.judged) == 59
    places = [place for played in twice.judged for place in (played.place, played.cached)]
    assert all(place % 2 == 0 for place in places)


def test_scopes_are_apart_in_a_log() -> None:
    lines = [Logged(line.question, line.vector, line.answer, scope=f"scope {at % 2}")
             for at, line in enumerate(log(80))]

    for played in calibrate(lines, EASY).judged:
        assert lines[played.place].scope == lines[played.cached].scope


@pytest.mark.parametrize(("entry", "asked", "compared"), [
    ((("a", "1"),), (("a", "1"), ("b", "1")), True), ((("a", "1"),), (("a", "2"),), False), ((), (("a", "1"),), False),
    ((), (), True), ((("a", "1"),), (), True),
])
def test_what_could_not_be_served_in_a_log_is_not_compared(entry: tuple, asked: tuple, compared: bool) -> None:
    lines = [Logged(line.question, line.vector, line.answer, entry if at < 40 else asked)
             for at, line in enumerate(log(80))]

    judged = [played for played in calibrate(lines, EASY).judged if played.place >= 40 and played.cached < 40]
    assert bool(judged) == compared


def test_lines_of_an_earlier_calibration_only_fill() -> None:
    found = calibrate(log(100), EASY, known=60)

    assert {played.place for played in found.judged} <= set(range(60, 100))
    assert min(played.cached for played in found.judged) < 60


def test_a_line_asks_the_lines_before_it_alone() -> None:
    assert all(played.cached < played.place for played in calibrate(log(200), EASY).judged)


def test_a_pair_tests_what_the_pairs_before_it_have_made() -> None:
    """Hits and mistakes are those of a score and of cuts that have not seen the pair, nor any after it."""
    found = calibrate(log(300, noise=2.0), EASY)
    again, hits, wrong = Policy(EASY), np.zeros(5, dtype=int), np.zeros(5, dtype=int)
    for played in found.judged:
        reached = again.scores(played.label.features[None])[0] >= again.cuts
        hits, wrong = hits + reached, wrong + (reached & (not played.label.right))
        again.teach(played.label)
        if again.labels % 50 == 0:
            again.recut()

    assert [(rule.hits, rule.wrong) for rule in found.proof.rules] == list(zip(hits, wrong, strict=True))
    assert wrong[-1] > 0


def test_what_a_log_proved_before_its_answers_changed_is_not_certified() -> None:
    world = World()
    lines = [Logged(*world.draw()) for _ in range(600)]
    assert calibrate(lines, EASY).proof.changed is None
    world.shift()
    found = calibrate(lines + [Logged(*world.draw()) for _ in range(80)], EASY)

    assert found.proof.changed in range(595, 660)
    assert (found.proof.passed, found.policy.tests.live) == (0, 0)
    assert found.policy.quarantined_until == -math.inf


def test_equal_logs_give_equal_policies() -> None:
    one, other = (calibrate(log(200), EASY).policy.pack() for _ in range(2))

    assert one[0] == other[0]
    assert all(np.array_equal(array, other[1][name]) for name, array in one[1].items())


def test_vectors_of_two_widths_are_refused() -> None:
    lines = [Logged("a", np.ones(3, dtype=np.float32), 1), Logged("b", np.ones(4, dtype=np.float32), 1)]

    with pytest.raises(DimensionMismatchError, match=r"^a vector of the log has 4 dimensions, expected 3$"):
        calibrate(lines, EASY)
