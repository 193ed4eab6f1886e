"""``tune``: recommends a planted win, refuses noise, and writes what ``RerankSettings`` reads."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuralcache_plugins import RerankSettings, open_store
from neuralcache_plugins.contracts import Ranking, TelemetryStore
from neuralcache_plugins.errors import InvalidInputError
from neuralcache_plugins.evaluation import Tuning, tune
from neuralcache_plugins.evaluation.tuning import combinations
from neuralcache_plugins.reranker import Reranker
from neuralcache_plugins.testing import HashingEncoder

WORDS = ["password", "reset", "card", "lost", "fee", "transfer", "branch", "opening", "hours", "loan", "savings"]
DEAF = RerankSettings(lexical_weight=0.0, learning=False)
"""Settings that ignore words and learn nothing, where the words of the question name the right document."""

Judge = Callable[[Ranking, str, np.random.Generator], str]


def log_of(judge: Judge, *, asked: int = 150, seed: int = 0, settings: RerankSettings = DEAF) -> TelemetryStore:
    """Ask for documents by their words of a retriever that knows nothing; ``judge`` names what is rewarded."""
    rng = np.random.default_rng(seed)
    store = open_store("memory://")
    pairs = [(one, two) for at, one in enumerate(WORDS) for two in WORDS[at + 1:]]
    with Reranker(HashingEncoder(), store=store, settings=settings) as reranker:
        for _ in range(asked):
            among = [pairs[at] for at in rng.choice(len(pairs), 8, replace=False)]
            right = among[int(rng.integers(8))]
            texts, ids = [f"about {one} and {two}" for one, two in among], ["-".join(pair) for pair in among]
            ranking = reranker.rerank(" ".join(right), texts, ids=ids, prior_scores=rng.standard_normal(8).tolist())
            reranker.feedback(ranking, helpful=[judge(ranking, "-".join(right), rng)])
    return store


def honest(ranking: Ranking, right: str, rng: np.random.Generator) -> str:
    return right


def at_random(ranking: Ranking, right: str, rng: np.random.Generator) -> str:
    return ranking.ids[int(rng.integers(len(ranking.ids)))]


@pytest.fixture(scope="module")
def won() -> Tuning:
    return tune(log_of(honest), {"lexical_weight": [0.0, 0.3, 3.0], "half_life_seconds": [86_400.0]}, settings=DEAF)


def test_a_planted_win_is_recommended(won: Tuning) -> None:
    """And no more than the win: of equal combinations the one that changes least is chosen."""
    assert won.recommended is not None and won.best is not None
    assert won.recommended.lexical_weight == 3.0
    assert won.gain == won.best.gain
    assert won.gain.above_zero
    assert (won.head, won.tail) == (105, 45)
    assert "beats the current settings (gain on the 45 rankings held out: +" in won.reason


@pytest.mark.parametrize("seed", range(3))
def test_random_feedback_recommends_nothing(seed: int) -> None:
    found = tune(log_of(at_random, seed=seed), {"lexical_weight": [0.3, 3.0], "dense_weight": [0.1, 0.3, 2.0]},
                 settings=DEAF)

    assert found.recommended is None
    assert "beyond noise" in found.reason or "Nothing did better" in found.reason
    with pytest.raises(InvalidInputError, match=r"^nothing is recommended, so there is nothing to write\. "):
        found.save("nowhere.toml")


def test_too_little_feedback_recommends_nothing() -> None:
    found = tune(log_of(honest, asked=40), {"lexical_weight": [3.0]}, settings=DEAF)

    assert found.recommended is None
    assert found.reason == ("Only 12 rankings with feedback that tells an order were held out (and 28 to choose on): "
                            "at least 30 are needed to tell a gain from noise.")


def test_the_tail_is_not_looked_at_while_choosing() -> None:
    """Feedback turns to noise in the held-out part: what won before is chosen, but not recommended."""
    turned = iter(range(1_000))

    def half_honest(ranking: Ranking, right: str, rng: np.random.Generator) -> str:
        return right if next(turned) < 70 else ranking.ids[0]

    found = tune(log_of(half_honest, asked=140), {"lexical_weight": [3.0]}, settings=DEAF, held_out=0.5)

    assert found.best is not None and found.best.gain_chosen_on > 0.1
    assert found.recommended is None
    assert found.gain.below_zero


def test_nothing_to_try() -> None:
    found = tune(log_of(honest, asked=3), {"lexical_weight": [0.0]}, settings=DEAF)

    assert found.trials == ()
    assert found.reason == "There was nothing to try: every combination equals the current settings."
    found.plot()
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["gain"]["value"] is None


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"wordiness": [1]}, r"^RerankSettings has no 'wordiness'$"),
        ({"exploration": [0.1]}, r"^a log cannot tell what exploration would have changed: it cannot be tuned"),
        ({"lexical_weight": []}, r"^lexical_weight must have a list of values to try, got \[\]$"),
        ({"lexical_weight": [-1]}, r"^lexical_weight: Input should be greater than or equal to 0, got -1$"),
    ],
)
def test_what_cannot_be_tuned_is_refused(space: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        tune(open_store("memory://"), space)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "nDCG"}, r"^metric must be one of RR, first, log-loss, got 'nDCG'$"),
        ({"held_out": 1.0}, r"^held_out must be between 0 and 1 and trials at least 1, got 1\.0 and 30$"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        tune(open_store("memory://"), **options)


def test_combinations_are_drawn_by_the_seed() -> None:
    space = {"lexical_weight": [0.2, 0.3], "dense_weight": [0.3, 0.4]}
    current = RerankSettings(lexical_weight=0.1, dense_weight=0.3)

    everything = combinations(space, current, trials=99, seed=0)

    assert len(everything) == 5
    assert {"dense_weight": 0.4} in everything
    assert combinations(space, current, trials=3, seed=1) == combinations(space, current, trials=3, seed=1)
    assert len(combinations(space, current, trials=3, seed=1)) == 3


def test_the_file_is_what_settings_read(won: Tuning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    won.save(tmp_path / "rerank.toml")
    won.save(tmp_path / "rerank.env")

    content = tomllib.loads((tmp_path / "rerank.toml").read_text())
    lines = (tmp_path / "rerank.env").read_text().splitlines()
    assert content == {"lexical_weight": 3.0}
    assert lines[0] == f"# {won.reason}"
    for line in lines[1:]:
        monkeypatch.setenv(*line.split("=", 1))
    assert RerankSettings() == RerankSettings(**content)


def test_what_people_and_programs_see(won: Tuning, tmp_path: Path) -> None:
    won.to_csv(tmp_path / "all.csv")
    won.to_json(tmp_path / "all.json")
    (axes,) = won.plot().axes

    assert len((tmp_path / "all.csv").read_text().splitlines()) == 1 + len(won.trials)
    assert json.loads((tmp_path / "all.json").read_text())["recommended"]["lexical_weight"] == 3.0
    assert axes.get_xlabel() == "gain in RR over the current settings (difference of means)"
    assert "beats the current settings" in won._repr_html_()
    assert won.table().rows[0][0].startswith("lexical_weight 3.0")
