"""Learning on streams of questions: feedback helps, and useless feedback does no harm. Ours beside its peers.

    python benchmarks/learning.py --data PATH --neuralcache PYTHON

prints the whole table: what must be reached, what was (median over the seeds, lowest and highest), and the peers of
``learning_peers.py`` on the same streams. About half an hour of CPU for our five seeds and as much for one seed of
the peers; ``--rows``, ``--encoder``, ``--seeds``, ``--peers`` choose parts, ``--quick`` shortens the streams,
``--check`` only compares the order of this file's short cut (``Player``) with the reranker's.

Every question is ranked before its feedback is given (prequential); a seed shuffles the stream and draws the
feedback. banking77: 77 articles with equal prior scores, the top 5 shown, feedback names the right article when it is
shown, unless the kind of feedback says otherwise. squad, scifact and mtrag: 50 candidates with the scores of MiniLM.

NeuralCache needs old versions of its web stack, so it gets an environment of its own, whose interpreter is named:

    python3.11 -m venv peers && peers/bin/pip install neuralcache==0.3.2    # then --neuralcache peers/bin/python
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from learning_peers import Peer, cold_and_signals, peers
from learning_sets import ENCODERS, Banking, Case, banking, conversations, scifact, squad

from neuralcache_plugins import Reranker, RerankSettings
from neuralcache_plugins.contracts import FeedbackGiven, RankingServed, Recorded
from neuralcache_plugins.core.lexical import TokenStatistics, token_statistics
from neuralcache_plugins.memory import LearnedState
from neuralcache_plugins.reranker.shown import SPOKEN_CHARACTERS, SPOKEN_DOCUMENTS
from neuralcache_plugins.reranker.stages import Evidence, Vectors, choose, cold_evidence, learned_evidence, spoken_of
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
        self.texts: dict[str, list[str]] = {}
        self.spoken: dict[str, TokenStatistics] = {}

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
        if session is not None:
            self.texts[served.ranking_id] = [case.texts[at] for at in picked]
        self.fold(served)
        return served

    def tell(self, served: RankingServed, helpful: Sequence[str]) -> None:
        """Reward the documents named."""
        rows = self.rows.pop(served.ranking_id)
        if served.session is not None:
            shown = zip(served.document_ids, self.texts.pop(served.ranking_id), strict=True)
            texts = [text for name, text in shown if name in helpful][:SPOKEN_DOCUMENTS]
            self.spoken[served.session] = token_statistics(" ".join(texts)[:SPOKEN_CHARACTERS])
        mean = np.sum([rows[served.document_ids.index(name)] for name in helpful], axis=0)
        self.fold(storable_feedback(FeedbackGiven(
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
            in_session=session is not None, settings=self.settings, spoken=self.session_words(case, session),
        )
        return learned_evidence(
            cold, signals, state=self.state, ids=case.ids, vectors=vectors, in_session=session is not None,
            now=1e9 + self.state.rankings, settings=self.settings,
        )

    def session_words(self, case: Case, session: str | None) -> np.ndarray | None:
        """Return what the words of what helped in a session say of the candidates."""
        helped = None if session is None else self.spoken.get(session)
        return None if helped is None else spoken_of(case.query, helped, list(map(_statistics, case.texts)))

    def fold(self, event: RankingServed | FeedbackGiven) -> None:
        """Let the fold see an event."""
        self.state.fold(Recorded(self.state.position + 1, event))


@lru_cache(maxsize=20_000)
def _statistics(text: str) -> TokenStatistics:
    return token_statistics(text)


def cold_order(case: Case) -> list[int]:
    """Return the order that no feedback ever touched, as positions; kept with the case."""
    if case.cold is None:
        case.cold = np.argsort(-cold_and_signals(case)[0], kind="stable")
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


# one pass over a stream each; the learner is ours or a peer


def play_banking(stream: Banking, kind: str, learner: Player | Peer, seed: int, limit: int | None) -> Figures:
    """Return how often the right article comes first."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(stream.cases))[:limit]
    judge = Judge(kind, stream, len(order), rng)
    first, cold, stolen, same = (np.zeros(len(order), dtype=bool) for _ in range(4))
    for step, index in enumerate(order):
        case, right = stream.cases[index], judge.right(step, int(stream.right[index]))
        served = learner.ask(case, shown=SHOWN)
        cold_first = cold_order(case)
        first[step] = served.positions[0] == right
        cold[step] = cold_first[0] == right
        stolen[step] = cold[step] and served.positions[0] == judge.pushed != right
        same[step] = list(served.positions) == cold_first[:SHOWN]
        rewarded = judge.rewarded(served.positions, right)
        if rewarded is not None:
            learner.tell(served, [stream.ids[rewarded]])
    half, tail = len(order) // 2, slice(-min(2000, len(order) // 2), None)
    found = {"last 2000": first[tail].mean(), "over all": first.mean(), "cold": cold[tail].mean(),
             "over cold": first[tail].mean() - cold[tail].mean(), "as cold": same.mean(), "stolen": stolen.mean(),
             "after swap": first[half + 1500 : half + 2500].mean() if len(order) > 5000 else math.nan}
    if isinstance(learner, Player):
        found["trust"] = next(iter(learner.state.learners.values())).trust.value
    return found


def play_squad(stream: Sequence[tuple[Case, Case]], learner: Player | Peer, seed: int, *, both: bool) -> Figures:
    """Ask everything, then everything again in other words: first place among those helped the first time.

    What was helped depends on what was shown, so learners are compared on questions of their own: see "helped".
    """
    rng = np.random.default_rng(seed)
    helped, first, cold = set(), [], []
    for index in rng.permutation(len(stream)).tolist():
        case = stream[index][0]
        served = learner.ask(case, shown=RETRIEVED_SHOWN)
        if right := [name for name in served.document_ids if name in case.grades]:
            learner.tell(served, right)
            helped.add(index)
    for index in rng.permutation(len(stream)).tolist():
        case = stream[index][1]
        served = learner.ask(case, shown=RETRIEVED_SHOWN)
        right = [name for name in served.document_ids if name in case.grades]
        if index in helped:
            first.append(served.document_ids[0] in case.grades)
            cold.append(case.ids[cold_order(case)[0]] in case.grades)
        if both and right:
            learner.tell(served, right)
    return {"first": np.mean(first), "cold": np.mean(cold), "helped": len(first)}


def play_scifact(stream: Sequence[Case], learner: Player | Peer, seed: int) -> Figures:
    """Every claim once, its abstracts rewarded: nDCG@10 over cold, over all and where nothing recurs."""
    rng = np.random.default_rng(seed)
    cited = set[str]()
    gains, fresh = [], []
    for index in rng.permutation(len(stream)).tolist():
        case = stream[index]
        served = learner.ask(case, shown=RETRIEVED_SHOWN)
        gain = case.ndcg(served.document_ids) - case.ndcg([case.ids[at] for at in cold_order(case)])
        gains.append(gain)
        if not cited & set(case.grades):
            fresh.append(gain)
        cited |= set(case.grades)
        if right := [name for name in served.document_ids if name in case.grades]:
            learner.tell(served, right)
    return {"all": np.mean(gains), "nothing recurs": np.mean(fresh), "claims": len(fresh)}


def play_sessions(talks: Sequence[Sequence]) -> Figures:
    """Conversations with the annotators' votes as feedback: follow-up turns, nDCG@10 over the order without session.

    Every conversation meets a fresh learner, so chance has no part in it.
    """
    gains = []
    for number, talk in enumerate(talks):
        player = Player()
        for place, turn in enumerate(talk):
            served = player.ask(turn.case, shown=len(turn.case.ids), session=f"talk {number}")
            if place and turn.case.grades:
                cold = [turn.case.ids[at] for at in cold_order(turn.case)]
                gains.append(turn.case.ndcg(served.document_ids) - turn.case.ndcg(cold))
            if right := [name for name in served.document_ids if name in turn.helpful]:
                player.tell(served, right)
    return {"gain": np.mean(gains), "turns": len(gains)}


def play_cold_start(data: Path, encoder: str) -> Figures:
    """Nothing learned: nDCG@10 over the retriever's order, its scores given; see ``cold_start.py``."""
    import cold_start as start

    weights = start.Weights(RerankSettings().dense_weight, RerankSettings().lexical_weight)
    found = {}
    for name in start.SETS:
        corpus, qrels = start.read_corpus(data / name), start.read_qrels(data / name)
        questions = next(start.read_questions(data / name, set(qrels)))
        if encoder == "minilm":
            corpus, questions = replace(corpus, local=corpus.minilm), replace(questions, local=questions.minilm)
        cases = list(start.retrieve(corpus, questions))
        judged = [start.Qrel(one, doc, grade) for one in questions.ids for doc, grade in qrels[one].items()]
        before = start.ndcg(judged, cases, lambda case: np.arange(len(case.found)))
        found[name] = start.ndcg(judged, cases, lambda case: case.order(weights, with_scores=True)) - before
    return {"mean": np.mean(list(found.values())), "lowest": min(found.values()), **found}


# the table


class Goal(NamedTuple):
    """A figure of a row and what it must reach with the local encoder and with MiniLM vectors."""

    name: str
    figure: str
    local: float
    minilm: float
    at_most: bool = False

    def target(self, encoder: str) -> float:
        return self.local if encoder == "local" else self.minilm

    def reached(self, value: float, encoder: str) -> bool:
        """Return whether ``value`` is good enough, to the last digit that is printed."""
        over = round(value, 4) - self.target(encoder)
        return over <= 1e-9 if self.at_most else over >= -1e-9


Play = Callable[[Path, str, Any, int, "int | None"], Figures]
"""(folder of the sets, encoder, learner, seed, most questions) -> figures"""


class Row(NamedTuple):
    """One setting: how it is played, what must be reached, which peers can play it, whether a seed changes it."""

    setting: str
    goals: tuple[Goal, ...]
    play: Play
    without: tuple[str, ...] = ()
    peers: bool = True
    seeded: bool = True


def _banking(kind: str) -> Play:
    return lambda data, encoder, learner, seed, limit: play_banking(
        _load("banking", data, encoder), kind, learner, seed, limit
    )


def _squad(*, both: bool) -> Play:
    return lambda data, encoder, learner, seed, limit: play_squad(
        _load("squad", data, encoder)[:limit], learner, seed, both=both
    )


def _scifact(data: Path, encoder: str, learner: Player | Peer, seed: int, limit: int | None) -> Figures:
    return play_scifact(_load("scifact", data, encoder)[:limit], learner, seed)


def _sessions(name: str) -> Play:
    return lambda data, encoder, *_: play_sessions(_load(name, data, encoder))


def _last(local: float, minilm: float) -> Goal:
    return Goal("right first, last 2,000", "last 2000", local, minilm)


HARMLESS = Goal("the same, less cold", "over cold", -0.01, -0.01)
LINUCB = ("linucb", "linucb+dense")
ROWS: Mapping[str, Row] = {
    "all": Row("all feedback", (_last(0.885, 0.92), Goal("over all 7,655", "over all", 0.83, 0.875)), _banking("all")),
    "sparse": Row("20 % get feedback, 20 % of it wrong", (_last(0.72, 0.79),), _banking("sparse")),
    "random": Row("feedback random among the shown", (HARMLESS,), _banking("random")),
    "wrong": Row("feedback names a wrong one", (HARMLESS,), _banking("wrong")),
    "hostile": Row("30 % names a wrong one", (_last(0.80, 0.86),), _banking("hostile")),
    "push": Row("10 % pushes one document", (Goal("first places it takes", "stolen", 0.01, 0.01, at_most=True),),
                _banking("push")),
    "clicks": Row("clicks, probability 1/rank", (_last(0.845, 0.90),), _banking("clicks")),
    "drift": Row("half of the articles swap meaning", (Goal("1,500-2,500 after", "after swap", 0.76, 0.83),),
                 _banking("drift")),
    "none": Row("no feedback", (Goal("same order as cold", "as cold", 1.0, 1.0),), _banking("none")),
    "squad-both": Row("squad twice, feedback in both", (Goal("first, of those helped", "first", 0.975, 0.975),),
                      _squad(both=True)),
    "squad-first": Row("squad twice, only in the first", (Goal("first, of those helped", "first", 0.94, 0.94),),
                       _squad(both=False)),
    # a matrix for each of the 4,000 documents shown would take 2.4 GB
    "scifact": Row("scifact, all claims once", (Goal("nDCG@10 less cold", "all", 0.04, 0.04),
                   Goal("where nothing recurs", "nothing recurs", -0.002, -0.002)), _scifact, without=LINUCB),
    "mtrag-clapnq": Row("clapnq, in a session", (Goal("nDCG@10 less without", "gain", 0.03, 0.03),),
                        _sessions("mtrag-clapnq"), peers=False, seeded=False),
    "mtrag-fiqa": Row("fiqa, in a session", (Goal("nDCG@10 less without", "gain", 0.01, 0.01),),
                      _sessions("mtrag-fiqa"), peers=False, seeded=False),
    "cold-start": Row("four sets, nothing learned", (Goal("nDCG@10 less input, mean", "mean", 0.055, 0.055),
                      Goal("the lowest of four", "lowest", 0.02, 0.02)),
                      lambda data, encoder, *_: play_cold_start(data, encoder), peers=False, seeded=False),
}


@lru_cache(maxsize=len(ENCODERS))
def _load(name: str, data: Path, encoder: str):
    """Read a set once; rows of one set stand together, so older ones may go."""
    match name:
        case "banking":
            return banking(data, encoder)
        case "squad":
            return squad(data, encoder)
        case "scifact":
            return scifact(data, encoder)
        case _:
            return conversations(data, name, encoder)


def play(
    row: Row, data: Path, encoder: str, make: Callable[[int], Player | Peer], *, seeds: int, limit: int | None
) -> list[Figures]:
    """Return the figures of one kind of learner in one row, one entry a seed."""
    runs = []
    for seed in range(seeds if row.seeded else 1):
        learner = make(seed)
        with closing(learner) if hasattr(learner, "close") else nullcontext():
            runs.append(row.play(data, encoder, learner, seed, limit))
    return runs


def median(runs: Sequence[Figures], figure: str) -> float:
    return statistics.median(one[figure] for one in runs)


class Table:
    """Prints a line for every goal as soon as it is known, and in the end what was missed."""

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = columns
        self.goals = 0
        self.missed: list[str] = []
        titles = f"{'setting':36s}{'figure':25s}{'vectors':8s}{'must be':>9s}{'':5s}{'ours':>8s} {'(range)':20s}"
        print(titles + "".join(f"{name:>13s}" for name in columns), flush=True)

    def add(self, row: Row, encoder: str, ours: Sequence[Figures], others: Mapping[str, Sequence[Figures]]) -> None:
        """Print what one row reached with one encoder's vectors."""
        for goal in row.goals:
            value = median(ours, goal.figure)
            if math.isnan(value):
                continue
            lowest, highest = (pick(one[goal.figure] for one in ours) for pick in (min, max))
            reached, sign = goal.reached(value, encoder), "<=" if goal.at_most else ">="
            self.goals += 1
            if not reached:
                self.missed.append(f"{row.setting}, {goal.name}, {encoder}")
            spread = f"({lowest:.4f} to {highest:.4f})"
            cells = [f"{median(others[name], goal.figure):.4f}" if name in others else "-" for name in self.columns]
            print(f"{row.setting:36s}{goal.name:25s}{encoder:8s}{sign + format(goal.target(encoder), '.4g'):>9s}"
                  f"{'' if reached else 'MISS':>5s}{value:8.4f} {spread:20s}"
                  + "".join(f"{cell:>13s}" for cell in cells), flush=True)

    def close(self) -> None:
        """Print how many goals were reached, and the others by name."""
        print(f"{self.goals - len(self.missed)} of {self.goals} goals reached")
        for name in self.missed:
            print(f"missed: {name}")


def figures(runs: Sequence[Figures]) -> str:
    """Return medians and ranges over the seeds as text."""
    return "  ".join(
        f"{name} {median(runs, name):.4g}"
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


def _chosen(text: str, known: Sequence[str], kind: str, parser: argparse.ArgumentParser) -> list[str]:
    names = {"all": list(known), "none": []}.get(text) if kind == "peers" else None
    names = text.split(",") if names is None else names
    if unknown := set(names) - set(known):
        parser.error(f"unknown {kind} {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    return names


def lines(
    chosen: argparse.Namespace, names: Sequence[str], others: Mapping[str, Callable[[int], Peer]]
) -> Iterator[tuple[str, str, list[Figures], dict[str, list[Figures]]]]:
    """Play row after row: its name, the encoder, our figures and each peer's."""
    limit = QUICK if chosen.quick else None
    seeds, peer_seeds = (1, 1) if chosen.quick else (chosen.seeds, chosen.peer_seeds)
    for name in names:
        row = ROWS[name]
        able = {peer: make for peer, make in others.items() if row.peers and peer not in row.without}
        for encoder in ENCODERS if chosen.encoder == "both" else (chosen.encoder,):
            ours = play(row, chosen.data, encoder, lambda _: Player(), seeds=seeds, limit=limit)
            theirs = {
                peer: play(row, chosen.data, encoder, make, seeds=peer_seeds, limit=limit)
                for peer, make in able.items()
            }
            yield name, encoder, ours, theirs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with banking77/, squad/, scifact/, mtrag-*/")
    parser.add_argument("--encoder", default="both", choices=(*ENCODERS, "both"))
    parser.add_argument("--rows", default=",".join(ROWS), help=f"comma separated, of {', '.join(ROWS)}")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--peers", default="all", help="all, none, or names, comma separated")
    parser.add_argument("--peer-seeds", type=int, default=1)
    parser.add_argument("--neuralcache", type=Path, metavar="PYTHON", help="interpreter that has neuralcache 0.3.2")
    parser.add_argument("--quick", action="store_true", help=f"one seed, only {QUICK} questions of a stream")
    parser.add_argument("--details", action="store_true", help="all figures of ours, not only those with a goal")
    parser.add_argument("--json", type=Path, help="also write every figure of every seed to this file")
    parser.add_argument("--check", action="store_true", help="only compare the short cut with the reranker")
    chosen = parser.parse_args()
    names = _chosen(chosen.rows, list(ROWS), "rows", parser)
    known = peers(chosen.neuralcache)
    others = {name: known[name] for name in _chosen(chosen.peers, list(known), "peers", parser)}
    if chosen.check:
        for encoder in ENCODERS if chosen.encoder == "both" else (chosen.encoder,):
            check(chosen.data, encoder)
        return 0
    if chosen.peers == "all" and chosen.neuralcache is None:
        print("neuralcache is left out: name an interpreter that has it with --neuralcache, see --help")
    if chosen.quick:
        print(f"only {QUICK} questions of a stream: the goals are for all of them")
    table, kept, started = Table(list(others)), [], time.perf_counter()
    for name, encoder, ours, theirs in lines(chosen, names, others):
        table.add(ROWS[name], encoder, ours, theirs)
        if chosen.details:
            print(f"    {figures(ours)}", flush=True)
        kept.append({"row": name, "encoder": encoder, "ours": ours, "peers": theirs})
        if chosen.json is not None:
            chosen.json.write_text(json.dumps(kept, default=float, indent=1), encoding="utf-8")
    table.close()
    print(f"{time.perf_counter() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
