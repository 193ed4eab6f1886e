"""Feedback from answers: which of the shown documents an answer used, on data where that is known.

    python benchmarks/feedback.py --data PATH

prints what must be reached and what was. ``--rows`` chooses parts: squad, mtrag, scifact, abstention, stream, overhead.
``--fit`` fits the weights of ``neuralcache_plugins.attribution`` anew on the design halves (see ``feedback_sets.py``).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import feedback_sets as sets
import numpy as np
from feedback_sets import Told

from neuralcache_plugins.attribution import attribute, likeness_by
from neuralcache_plugins.attribution.evidence import MEANING, WORDS, features, sentences
from neuralcache_plugins.contracts import Attribution, Matrix
from neuralcache_plugins.encoders import LocalEncoder

MEANINGS = ("words", "words and meaning")


def attributed(told: Sequence[Told], *, meaning: bool) -> list[Attribution]:
    encode = likeness_by(LocalEncoder()) if meaning else None
    return [attribute(one.answer, one.ids, one.texts, query=one.query, encode=encode) for one in told]


def chances(found: Attribution, told: Told) -> np.ndarray:
    return np.array([found.probabilities[name] for name in told.ids])


def auc(used: np.ndarray, scores: np.ndarray) -> float:
    """Return the share of pairs (used, not used) in the right order; ties count half."""
    yes, no = scores[used], scores[~used]
    return float(((yes[:, None] > no).mean() + 0.5 * (yes[:, None] == no).mean()))


def over_all(told: Sequence[Told], scores: Sequence[np.ndarray]) -> float:
    return auc(np.concatenate([one.used for one in told]), np.concatenate(scores))


def within(told: Sequence[Told], scores: Sequence[np.ndarray]) -> float:
    both = [(one.used, own) for one, own in zip(told, scores, strict=True) if 0 < one.used.sum() < len(one.used)]
    return float(np.mean([auc(*pair) for pair in both]))


def top_right(told: Sequence[Told], scores: Sequence[np.ndarray]) -> float:
    return float(np.mean([one.used[own.argmax()] for one, own in zip(told, scores, strict=True) if one.used.any()]))


def calibration_error(told: Sequence[Told], scores: Sequence[np.ndarray]) -> float:
    """Return the expected calibration error in ten bins of equal width."""
    used, given = np.concatenate([one.used for one in told]), np.concatenate(scores)
    bins = np.minimum((given * 10).astype(int), 9)
    return float(sum(abs(used[bins == at].mean() - given[bins == at].mean()) * (bins == at).mean() for at in set(bins)))


def rewarded(told: Sequence[Told], found: Sequence[Attribution]) -> tuple[float, float]:
    """Return how many rewarded documents were used, and how many used ones are rewarded."""
    given = [np.array([name in own.rewards for name in one.ids]) for one, own in zip(told, found, strict=True)]
    hits, used = np.concatenate(given), np.concatenate([one.used for one in told])
    return float(used[hits].mean()) if hits.any() else float("nan"), float(hits[used].mean()) if used.any() else float("nan")


def plain(told: Sequence[Told]) -> list[np.ndarray]:
    """Return containment of the answer's words plus cosine of whole texts, both standardised: the baseline."""
    from neuralcache_plugins.core.lexical import tokens

    encode = likeness_by(LocalEncoder())
    both = []
    for one in told:
        words = tokens(one.answer)
        rows = encode([one.answer, *one.texts])
        both.append([(np.mean([word in own for word in words]) if words else 0.0, cosine) for own, cosine in zip(
            [set(tokens(text)) for text in one.texts], rows[1:] @ rows[0], strict=True)])
    table = np.array([pair for own in both for pair in own])
    z = ((table - table.mean(axis=0)) / table.std(axis=0)).sum(axis=1)
    return np.split(z, np.cumsum([len(own) for own in both])[:-1])


# the rows


def report(name: str, told: Sequence[Told], *, goal: str = "") -> None:
    print(f"{name} ({len(told)} answers, {sum(len(one.ids) for one in told)} documents){goal and ': must be '}{goal}")
    halves = {"design half": [one for one in told if one.design], "held out": [one for one in told if not one.design],
              "all": told}
    for meaning, label in enumerate(MEANINGS):
        for half, own in halves.items():
            found = attributed(own, meaning=bool(meaning))
            scores = [chances(*pair) for pair in zip(found, own, strict=True)]
            precision, recall = rewarded(own, found)
            print(f"  {label:18} {half:12} top {top_right(own, scores):.3f}  AUC over all {over_all(own, scores):.3f}, "
                  f"within a question {within(own, scores):.3f}  calibration error {calibration_error(own, scores):.3f}  "
                  f"rewarded: {precision:.3f} were used, of the used {recall:.3f}", flush=True)


def row_squad(data: Path) -> None:
    report("squad, a sentence of the passage", sets.squad(data), goal="top >= 0.97")
    report("squad, the answer alone in a template", sets.squad_short(data))
    for meaning, label in enumerate(MEANINGS):
        told = [one for one in sets.squad_absent(data) if not one.design]
        found = attributed(told, meaning=bool(meaning))
        print(f"squad, the passage not shown, held out, {label}: {np.mean([bool(own.rewards) for own in found]):.3f} of "
              f"{len(told)} answers reward something")


def row_mtrag(data: Path) -> None:
    for name, goal in (("mtrag-clapnq", "AUC >= 0.94"), ("mtrag-fiqa", "AUC >= 0.92")):
        told = sets.mtrag(data, name)
        report(name, told, goal=goal)
        base = plain(told)
        print(f"  containment + cosine           AUC over all {over_all(told, base):.3f}, within a question "
              f"{within(told, base):.3f}")


def row_scifact(data: Path) -> None:
    report("scifact, claims (nothing was fitted on it)", sets.scifact(data))


def row_abstention(data: Path) -> None:
    told = sets.squad_refused(data)
    found = attributed(told, meaning=True)
    print(f"abstention: {np.mean([not own.rewards for own in found]):.4f} of {len(told)} unanswered questions give no "
          "positive feedback: must be >= 0.99")
    answered = [one for one in sets.squad(data) if not one.design]
    print(f"  taken for a refusal: {np.mean([own.abstained for own in attributed(answered, meaning=False)]):.4f} of "
          f"{len(answered)} answers of squad, held out")


# fitting


DESIGN = ("mtrag-clapnq", "mtrag-fiqa", "mtrag-clapnq", "mtrag-fiqa", "squad", "squad short", "squad absent")
"""The sets of equal weight that the weights are fitted on; mtrag counts twice, because it is closest to real use."""


def fit(data: Path) -> None:
    told = {
        "mtrag-clapnq": sets.mtrag(data, "mtrag-clapnq"), "mtrag-fiqa": sets.mtrag(data, "mtrag-fiqa"),
        "squad": sets.squad(data), "squad short": sets.squad_short(data), "squad absent": sets.squad_absent(data),
    }
    encode = likeness_by(LocalEncoder())
    tables = {name: [_table(one, encode) for one in own if one.design] for name, own in told.items()}
    for label, columns in (("BY_WORDS", WORDS), ("BY_WORDS_AND_MEANING", (*WORDS, *MEANING))):
        used = [*range(len(columns)), -1]
        constant, weights = logistic([[own[:, used] for own in tables[name]] for name in DESIGN])
        named = ", ".join(f"{name} {value:.2f}" for name, value in zip(columns, weights, strict=True))
        print(f"{label}: constant {constant:.2f}, {named}")


def _table(one: Told, encode: Callable[[list[str]], Matrix]) -> np.ndarray:
    return np.column_stack([features(sentences(one.answer), one.texts, query=one.query, encode=encode), one.used])


def logistic(sets: Sequence[Sequence[np.ndarray]], *, penalty: float = 0.02, steps: int = 20_000,
             ) -> tuple[float, np.ndarray]:
    """Return constant and weights >= 0 of least logistic loss, with a quadratic penalty on standardised weights.

    Half of the loss is about documents (was it used?), half about pairs of one question (which of the two was?). Every
    set of tables, one a question with the label in the last column, has the same share. Projected gradient.
    """
    rows = [np.concatenate(tables) for tables in sets]
    pairs = [np.concatenate([_pairs(table) for table in tables]) for tables in sets]
    mean, deviation = (np.concatenate(rows)[:, :-1].mean(axis=0), np.concatenate(rows)[:, :-1].std(axis=0))
    x = np.concatenate([(own[:, :-1] - mean) / deviation for own in rows] + [own / deviation for own in pairs])
    y = np.concatenate([*(own[:, -1] for own in rows), *(np.ones(len(own)) for own in pairs)])
    share = np.concatenate([np.full(len(own), 0.5 / (len(own) * len(sets))) for own in [*rows, *pairs] if len(own)])
    counts = np.concatenate([np.ones(sum(map(len, rows))), np.zeros(sum(map(len, pairs)))])
    constant, weights = 0.0, np.zeros(x.shape[1])
    for _ in range(steps):
        off = share * (1 / (1 + np.exp(-(constant * counts + x @ weights))) - y)
        constant -= (off * counts).sum()
        weights = np.maximum(0.0, weights - (x.T @ off + 2 * penalty * weights))
    return float(constant - (weights / deviation) @ mean), weights / deviation


def _pairs(table: np.ndarray) -> np.ndarray:
    """Return the differences of features between used and unused documents of one question."""
    used = table[:, -1] == 1
    features = table[:, :-1]
    return (features[used][:, None] - features[~used]).reshape(-1, features.shape[1])


ROWS: dict[str, Callable[[Path], None]] = {
    "squad": row_squad, "mtrag": row_mtrag, "scifact": row_scifact, "abstention": row_abstention,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the sets")
    parser.add_argument("--rows", default=",".join(ROWS), help="which to print, separated by commas")
    parser.add_argument("--fit", action="store_true", help="only fit the weights anew")
    chosen = parser.parse_args()
    if unknown := set(chosen.rows.split(",")) - set(ROWS):
        parser.error(f"no such rows: {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    if chosen.fit:
        fit(chosen.data)
        return 0
    for name in chosen.rows.split(","):
        ROWS[name](chosen.data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
