"""Learning on streams of questions: feedback helps, and useless feedback does no harm.

    python benchmarks/learning.py --data PATH [--encoder both] [--rows all,sparse,...] [--seeds 5] [--quick] [--check]

Every question is ranked before its feedback is given (prequential). Figures are medians over seeds with the range; a
seed shuffles the stream and draws the feedback. ``--quick`` shortens the streams, ``--check`` only compares the order
of this file's short cut (``Player``) with the reranker's.

banking77: 77 articles with equal prior scores, the top 5 shown, feedback names the right article when it is shown,
unless the kind of feedback says otherwise. squad, scifact and mtrag: 50 candidates with the scores of MiniLM.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from learning_sets import ENCODERS, Banking, Case, banking, conversations, scifact, squad

from neuralcache_plugins import Reranker, RerankSettings
from neuralcache_plugins.contracts import FeedbackGiven, RankingServed, Recorded
from neuralcache_plugins.memory import LearnedState
from neuralcache_plugins.reranker.stages import Evidence, Vectors, choose, cold_evidence, learned_evidence
from neuralcache_plugins.telemetry import storable_feedback, storable_ranking

Figures = dict[str, float]
SHOWN = 5
RETRIEVED_SHOWN = 10
QUICK = 1_500


class Player:
    """A reranker without its border: the same stages and the same fold, no store, no texts."""

    def __init__(self, settings: RerankSettings | None = None) -> None:
        self.settings = settings or RerankSettings()
        self.state = LearnedState(self.settings)
        self.rng = np.random.default_rng(0)
        self.rows: dict[str, np.ndarray] = {}

    def ask(self, case: Case, *, shown: int, session: str | None = None) -> RankingServed:
        """Rank, and let the fold see what was shown."""
        evidence = self.evidence(case, session)
        chosen = choose(
            evidence, count=min(shown, len(case.ids)), least=None, rows=case.rows, settings=self.settings, rng=self.rng
        )
        picked = chosen.positions.tolist()
        served = storable_ranking(RankingServed(
            ranking_id=f"r{self.state.rankings}", namespace="default", at=1e9 + self.state.rankings, query_key="q",
            encoder="bench", query_vector=case.question, document_ids=tuple(case.ids[at] for at in picked),
            positions=tuple(picked), scores=chosen.scores, cold=tuple(evidence.cold[picked].tolist()),
            signals={name: tuple(values[picked].tolist()) for name, values in evidence.signals.items()},
            propensities=chosen.propensities, candidates=len(case.ids), session=session,
        ))
        self.rows[served.ranking_id] = case.rows[picked]
        self._fold(served)
        return served

    def tell(self, served: RankingServed, helpful: Sequence[str]) -> None:
        """Reward the documents named."""
        rows = self.rows.pop(served.ranking_id)
        mean = np.sum([rows[served.document_ids.index(name)] for name in helpful], axis=0)
        self._fold(storable_feedback(FeedbackGiven(
            feedback_id=f"f{served.ranking_id}", ranking_id=served.ranking_id, namespace="default", at=served.at + 0.5,
            source="user", rewards=tuple((name, 1.0) for name in helpful), ranking=served,
            document_vector=(mean / np.linalg.norm(mean)).astype(np.float32),
        ), served))

    def evidence(self, case: Case, session: str | None) -> Evidence:
        """Return what ``Reranker`` computes before it chooses."""
        vectors = Vectors("bench", case.question, case.rows, ())
        narrative = self.state.narrative("bench", session)
        cold, signals = cold_evidence(
            count=len(case.ids), prior_scores=case.prior, lexical=case.lexical, vectors=vectors, narrative=narrative,
            in_session=session is not None, settings=self.settings,
        )
        return learned_evidence(
            cold, signals, state=self.state, ids=case.ids, vectors=vectors, in_session=session is not None,
            now=1e9 + self.state.rankings, settings=self.settings,
        )

    def _fold(self, event: RankingServed | FeedbackGiven) -> None:
        self.state.fold(Recorded(self.state.position + 1, event))


def cold_order(case: Case) -> list[int]:
    """Return the order that no feedback ever touched, as positions; kept with the case."""
    if case.cold is None:
        case.cold = np.argsort(-Player().evidence(case, None).cold, kind="stable")
    return case.cold.tolist()


# what users do


class Judge:
    """Says which of the shown articles to reward: the right one, or what a noisy or hostile user would."""

    def __init__(self, kind: str, stream: Banking, size: int, rng: np.random.Generator) -> None:
        self.kind, self.rng = kind, rng
        self.swapped = _nearest_swaps(stream.rows, rng) if kind == "drift" else np.arange(len(stream.ids))
        self.half = size // 2
        self.pushed = int(rng.integers(len(stream.ids)))

    def right(self, step: int, article: int) -> int:
        """Return the article that is right at this step."""
        return int(self.swapped[article]) if step >= self.half else article

    def rewarded(self, shown: Sequence[int], right: int) -> int | None:
        """Return the article to reward, if any."""
        honest = right if right in shown else None
        wrong = [article for article in shown if article != right]
        chance = self.rng.random
        match self.kind:
            case "none":
                return None
            case "random":
                return int(self.rng.choice(shown))
            case "wrong":
                return int(self.rng.choice(wrong))
            case "hostile":
                return int(self.rng.choice(wrong)) if chance() < 0.3 else honest
            case "push":
                return (self.pushed if self.pushed in shown else None) if chance() < 0.1 else honest
            case "sparse":
                if chance() >= 0.2:
                    return None
                return int(self.rng.choice(wrong)) if chance() < 0.2 else honest
            case "clicks":
                return honest if honest is not None and chance() < 1 / (list(shown).index(honest) + 1) else None
            case _:
                return honest


def _nearest_swaps(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Let about half of the articles swap meaning with their nearest one."""
    similar = rows @ rows.T
    np.fill_diagonal(similar, -1)
    meaning = np.arange(len(rows))
    taken: set[int] = set()
    for article in rng.permutation(len(rows)).tolist():
        other = int(similar[article].argmax())
        if len(taken) < len(rows) // 2 and not taken & {article, other}:
            meaning[article], meaning[other] = other, article
            taken |= {article, other}
    return meaning


# one pass over a stream each


def play_banking(stream: Banking, kind: str, seed: int, limit: int | None) -> Figures:
    """Return how often the right article comes first."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(stream.cases))[:limit]
    judge, player = Judge(kind, stream, len(order), rng), Player()
    first, cold, stolen = (np.zeros(len(order), dtype=bool) for _ in range(3))
    for step, index in enumerate(order):
        case, right = stream.cases[index], judge.right(step, int(stream.right[index]))
        served = player.ask(case, shown=SHOWN)
        first[step] = served.positions[0] == right
        cold[step] = cold_order(case)[0] == right
        stolen[step] = cold[step] and served.positions[0] == judge.pushed != right
        rewarded = judge.rewarded(served.positions, right)
        if rewarded is not None:
            player.tell(served, [stream.ids[rewarded]])
    half, tail = len(order) // 2, slice(-min(2000, len(order) // 2), None)
    learner = next(iter(player.state.learners.values()))
    return {"last 2000": first[tail].mean(), "over all": first.mean(), "cold": cold[tail].mean(),
            "after swap": first[half + 1500 : half + 2500].mean() if len(order) > 5000 else np.nan,
            "stolen": stolen.mean(), "trust": learner.trust.value}


def play_squad(stream: Sequence[tuple[Case, Case]], seed: int, *, both: bool) -> Figures:
    """Ask everything, then everything again in other words: first place among those helped the first time."""
    rng = np.random.default_rng(seed)
    player = Player()
    helped, first, cold = set(), [], []
    for index in rng.permutation(len(stream)).tolist():
        case = stream[index][0]
        served = player.ask(case, shown=RETRIEVED_SHOWN)
        if right := [name for name in served.document_ids if name in case.grades]:
            player.tell(served, right)
            helped.add(index)
    for index in rng.permutation(len(stream)).tolist():
        case = stream[index][1]
        served = player.ask(case, shown=RETRIEVED_SHOWN)
        right = [name for name in served.document_ids if name in case.grades]
        if index in helped:
            first.append(served.document_ids[0] in case.grades)
            cold.append(case.ids[cold_order(case)[0]] in case.grades)
        if both and right:
            player.tell(served, right)
    return {"first": np.mean(first), "cold": np.mean(cold)}


def play_scifact(stream: Sequence[Case], seed: int) -> Figures:
    """Every claim once, its abstracts rewarded: nDCG@10 over cold, over all and where nothing recurs."""
    rng = np.random.default_rng(seed)
    player, cited = Player(), set[str]()
    gains, fresh = [], []
    for index in rng.permutation(len(stream)).tolist():
        case = stream[index]
        served = player.ask(case, shown=RETRIEVED_SHOWN)
        gain = case.ndcg(served.document_ids) - case.ndcg([case.ids[at] for at in cold_order(case)])
        gains.append(gain)
        if not cited & set(case.grades):
            fresh.append(gain)
        cited |= set(case.grades)
        if right := [name for name in served.document_ids if name in case.grades]:
            player.tell(served, right)
    return {"all": np.mean(gains), "nothing recurs": np.mean(fresh), "claims": len(fresh)}


def play_sessions(talks: Sequence[Sequence], seed: int) -> Figures:
    """Conversations with the annotators' votes as feedback: follow-up turns, nDCG@10 over the order without session."""
    rng = np.random.default_rng(seed)
    gains = []
    for number in rng.permutation(len(talks)).tolist():
        player = Player()
        for place, turn in enumerate(talks[number]):
            served = player.ask(turn.case, shown=len(turn.case.ids), session=f"talk {number}")
            if place and turn.case.grades:
                cold = [turn.case.ids[at] for at in cold_order(turn.case)]
                gains.append(turn.case.ndcg(served.document_ids) - turn.case.ndcg(cold))
            if right := [name for name in served.document_ids if name in turn.helpful]:
                player.tell(served, right)
    return {"gain": np.mean(gains), "turns": len(gains)}


# the table


class Row(NamedTuple):
    """One line of the table: the figure that counts, what it must reach with the local encoder and with MiniLM."""

    figure: str
    targets: tuple[str, str]
    play: Callable[[Path, str, int, int | None], Figures]


def _banking(kind: str) -> Callable[[Path, str, int, int | None], Figures]:
    return lambda data, encoder, seed, limit: play_banking(_load("banking", data, encoder), kind, seed, limit)


def _squad(*, both: bool) -> Callable[[Path, str, int, int | None], Figures]:
    return lambda data, encoder, seed, limit: play_squad(_load("squad", data, encoder)[:limit], seed, both=both)


def _sessions(name: str) -> Callable[[Path, str, int, int | None], Figures]:
    return lambda data, encoder, seed, limit: play_sessions(_load(name, data, encoder), seed)


def _scifact(data: Path, encoder: str, seed: int, limit: int | None) -> Figures:
    return play_scifact(_load("scifact", data, encoder)[:limit], seed)


ROWS: Mapping[str, Row] = {
    "all": Row("last 2000", ("0.885, over all 0.83", "0.92, over all 0.875"), _banking("all")),
    "sparse": Row("last 2000", ("0.72", "0.79"), _banking("sparse")),
    "random": Row("last 2000", ("cold - 0.01", "cold - 0.01"), _banking("random")),
    "wrong": Row("last 2000", ("cold - 0.01", "cold - 0.01"), _banking("wrong")),
    "hostile": Row("last 2000", ("0.80", "0.86"), _banking("hostile")),
    "push": Row("stolen", ("<= 0.01", "<= 0.01"), _banking("push")),
    "clicks": Row("last 2000", ("0.845", "0.90"), _banking("clicks")),
    "drift": Row("after swap", ("0.76", "0.83"), _banking("drift")),
    "none": Row("last 2000", ("cold", "cold"), _banking("none")),
    "squad-both": Row("first", ("0.975", "0.975"), _squad(both=True)),
    "squad-first": Row("first", ("0.94", "0.94"), _squad(both=False)),
    "scifact": Row("all", ("+0.04, nothing recurs -0.002", "+0.04, nothing recurs -0.002"), _scifact),
    "mtrag-clapnq": Row("gain", ("+0.03", "+0.03"), _sessions("mtrag-clapnq")),
    "mtrag-fiqa": Row("gain", ("+0.01", "+0.01"), _sessions("mtrag-fiqa")),
}


@cache
def _load(name: str, data: Path, encoder: str):
    """Read a set once."""
    match name:
        case "banking":
            return banking(data, encoder)
        case "squad":
            return squad(data, encoder)
        case "scifact":
            return scifact(data, encoder)
        case _:
            return conversations(data, name, encoder)


def figures(runs: Sequence[Figures]) -> str:
    """Return medians and ranges over the seeds as text."""
    return "  ".join(
        f"{name} {statistics.median(one[name] for one in runs):.4g}"
        f" ({min(one[name] for one in runs):.4g} to {max(one[name] for one in runs):.4g})"
        for name in runs[0] if not np.isnan(runs[0][name])
    )


def check(data: Path, encoder: str, questions: int = 300) -> None:
    """Raise unless ``Player`` shows exactly what a ``Reranker`` shows."""
    stream = banking(data, encoder)
    player, rng = Player(), np.random.default_rng(0)
    with Reranker(store="memory://") as reranker:
        for index in rng.permutation(len(stream.cases))[:questions].tolist():
            case = stream.cases[index]
            served = player.ask(case, shown=SHOWN)
            ranking = reranker.rerank(case.query, case.texts, ids=case.ids, query_vector=case.question,
                                      vectors=case.rows, prior_scores=case.prior, top_n=SHOWN)
            reranker.flush()
            if ranking.ids != served.document_ids:
                raise AssertionError(f"{ranking.ids} is not {served.document_ids}")
            if stream.ids[stream.right[index]] in ranking.ids:
                player.tell(served, [stream.ids[stream.right[index]]])
                reranker.feedback(ranking, helpful=[stream.ids[stream.right[index]]])
    print(f"{encoder}: {questions} rankings with feedback, equal to the reranker's")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with banking77/, squad/, scifact/, mtrag-*/")
    parser.add_argument("--encoder", default="both", choices=(*ENCODERS, "both"))
    parser.add_argument("--rows", default=",".join(ROWS), help=f"comma separated, of {', '.join(ROWS)}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help=f"one seed, only {QUICK} questions of a stream")
    parser.add_argument("--check", action="store_true", help="only compare the short cut with the reranker")
    chosen = parser.parse_args()
    names = chosen.rows.split(",")
    if unknown := set(names) - set(ROWS):
        parser.error(f"unknown rows {', '.join(sorted(unknown))}")
    seeds, limit = (1, QUICK) if chosen.quick else (chosen.seeds, None)
    for encoder in ENCODERS if chosen.encoder == "both" else (chosen.encoder,):
        if chosen.check:
            check(chosen.data, encoder)
            continue
        for name in names:
            row, started = ROWS[name], time.process_time()
            runs = [row.play(chosen.data, encoder, seed, limit) for seed in range(seeds)]
            seconds = (time.process_time() - started) / len(runs)
            print(f"{encoder:7s} {name:13s} {row.figure} must reach {row.targets[ENCODERS.index(encoder)]}:  "
                  f"{figures(runs)}  {seconds:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
