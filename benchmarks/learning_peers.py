"""Other ways to learn from feedback, to run on the streams of ``benchmarks/learning.py`` beside ours.

A peer answers ``ask`` with what it shows and hears through ``tell`` what helped, as ``learning.Player`` does. Where a
peer sits on top of a retriever it gets our cold order, so that only what it learns differs. Its constants are the
published ones where there are some; where we had to choose, the choice is the one that served it best on 4,000
questions of banking77 with the local encoder and all feedback.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple, Protocol

import numpy as np
from learning_sets import Case

from neuralcache_plugins import RerankSettings
from neuralcache_plugins.reranker.stages import Vectors, cold_evidence

SETTINGS = RerankSettings()


class Shown(NamedTuple):
    """What a peer showed for a case, best first."""

    positions: tuple[int, ...]
    document_ids: tuple[str, ...]
    case: Case


class Peer(Protocol):
    """Something that ranks and is told what helped."""

    def ask(self, case: Case, *, shown: int) -> Shown: ...

    def tell(self, given: Shown, helpful: Sequence[str]) -> None: ...


def cold_and_signals(case: Case) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the log-probabilities (n,) of our order before it learned anything, and the signals behind them."""
    vectors = Vectors("bench", case.question, case.rows, ())
    return cold_evidence(
        count=len(case.ids), prior_scores=case.prior, lexical=case.lexical, vectors=vectors, narrative=None,
        in_session=False, settings=SETTINGS,
    )


class InputOrder:
    """The order that came in. On banking77 all prior scores are equal, so it means nothing there.

    Also what the other peers in this process are made of: they score, and learn from what was shown and what helped.
    """

    hears_silence = False
    """Whether a ranking without feedback counts as one in which nothing shown helped."""

    _unanswered: Shown | None = None

    def scores(self, case: Case) -> np.ndarray:
        return -np.arange(len(case.ids))

    def learn(self, given: Shown, helpful: Sequence[str]) -> None:
        """Learn nothing."""

    def ask(self, case: Case, *, shown: int) -> Shown:
        """Show the highest scores; ties stay as they came in."""
        if self.hears_silence and self._unanswered is not None:
            self.learn(self._unanswered, ())
        order = np.argsort(-self.scores(case), kind="stable")[:shown].tolist()
        self._unanswered = Shown(tuple(order), tuple(case.ids[at] for at in order), case)
        return self._unanswered

    def tell(self, given: Shown, helpful: Sequence[str]) -> None:
        self._unanswered = None
        self.learn(given, helpful)


class ColdOrder(InputOrder):
    """Our own order before it learned anything."""

    def scores(self, case: Case) -> np.ndarray:
        return cold_and_signals(case)[0]


class BetaCounters(InputOrder):
    """Successes and failures of each document, whatever the question, with Thompson sampling.

    As the Retrieval Reputation Layer describes itself (pypi.org/project/retrieval-reputation-layer): similarity,
    plus the means of a quick and a slow Beta counter, plus a draw from the quick one and its uncertainty, both
    scaled by similarity. Kinder than there: a document answers for its own reward only, not for all that was shown.
    """

    SIMILARITY, RECENT, LONG, EXPLORE = 0.55, 0.30, 0.15, 0.1
    SLOW = 0.25

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.counts: dict[str, np.ndarray] = {}

    def scores(self, case: Case) -> np.ndarray:
        cold = cold_and_signals(case)[0]
        similarity = (cold - cold.min()) / max(float(np.ptp(cold)), 1e-9)
        nothing = np.zeros(2)
        counted = np.array([self.counts.get(name, nothing) for name in case.ids])
        quick, slow = 1.0 + counted, 1.0 + self.SLOW * counted
        drawn = self.rng.beta(quick[:, 0], quick[:, 1]) + 1.0 / np.sqrt(quick.sum(axis=1))
        means = self.RECENT * quick[:, 0] / quick.sum(axis=1) + self.LONG * slow[:, 0] / slow.sum(axis=1)
        return self.SIMILARITY * similarity + means + self.EXPLORE * similarity * drawn

    def learn(self, given: Shown, helpful: Sequence[str]) -> None:
        """Count a success for what helped and a failure for the rest of what was shown."""
        for name in given.document_ids:
            self.counts.setdefault(name, np.zeros(2))[0 if name in helpful else 1] += 1.0


class SignalBandit(InputOrder):
    """Thompson sampling over the weights of the retriever's signals, as Mixpeek's learned fusion describes.

    (docs.mixpeek.com/relevance/learned-fusion.) Each signal has a Beta counter; a question draws a weight from each
    and fuses reciprocal ranks by them. A signal is paid for rewarded documents that it would have shown itself, and
    charged for the others of these, also in silence (impressions less clicks). It learns which signal to trust,
    never which document answers which question.
    """

    RANK_OFFSET = 60
    hears_silence = True

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.counts = {name: np.ones(2) for name in ("prior", "dense", "lexical")}

    def scores(self, case: Case) -> np.ndarray:
        ranks = self._ranks(case)
        drawn = {name: float(self.rng.beta(*self.counts[name])) for name in ranks}
        return np.sum([drawn[name] / (self.RANK_OFFSET + ranks[name]) for name in ranks], axis=0) / sum(drawn.values())

    def learn(self, given: Shown, helpful: Sequence[str]) -> None:
        """Pay and charge every signal for what it would have shown."""
        for name, ranks in self._ranks(given.case).items():
            for at, document_id in zip(given.positions, given.document_ids, strict=True):
                if ranks[at] <= len(given.positions):
                    self.counts[name][0 if document_id in helpful else 1] += 1.0

    def _ranks(self, case: Case) -> dict[str, np.ndarray]:
        """Return ranks from 1 by each signal that says something; equals share the best of their ranks."""
        signals = cold_and_signals(case)[1]
        return {
            name: 1 + len(signals[name]) - np.searchsorted(np.sort(signals[name]), signals[name], side="right")
            for name in self.counts if np.ptp(signals[name]) > 0
        }


class LinUCB(InputOrder):
    """Disjoint linear bandits, one per document, on the question's vector (Li et al., WWW 2010, algorithm 1).

    As published, a document that was shown and got no reward got reward 0, also in silence: 0.72 right against 0.24
    with rewarded rankings alone, but 0.06 against 0.08 where feedback is sparse. ``informed`` starts each document's
    model at its own vector instead of 0, so that the first order is by cosine, and takes silence for nothing (0.81
    and 0.58; 0.83 and 0.42 otherwise). ``alpha`` of 0.1, 0.25, 0.5, 1 and 2 were tried.

    Written here because the libraries do not serve streams of this length. mabwiser 2.7.4 gives expectations for
    all arms (the same ones: 1e-15 apart over 200 feedbacks), but inverts a matrix per arm and feedback: 78 ms for
    five arms at 256 dimensions and 165 ms at 384, so 10 to 21 minutes for one row of the table, and brings pandas,
    scikit-learn and seaborn. contextualbandits 0.3.30 has to be compiled, takes 9 and 18 ms a question, which is
    1 to 2 minutes a row, and cannot start informed.
    """

    def __init__(self, *, informed: bool) -> None:
        self.informed = informed
        self.hears_silence = not informed
        self.alpha = 0.25 if informed else 1.0
        self.inverses: dict[str, np.ndarray] = {}
        self.sums: dict[str, np.ndarray] = {}
        self.models: dict[str, np.ndarray] = {}

    def scores(self, case: Case) -> np.ndarray:
        asked = case.question
        start = case.rows @ asked if self.informed else np.zeros(len(case.ids))
        learned = [self.models[name] @ asked if name in self.models else 0.0 for name in case.ids]
        spread = [
            asked @ self.inverses[name] @ asked if name in self.inverses else asked @ asked for name in case.ids
        ]
        return start + learned + self.alpha * np.sqrt(np.maximum(0.0, spread))

    def learn(self, given: Shown, helpful: Sequence[str]) -> None:
        """Give reward 1 to what helped and 0 to the rest of what was shown (Sherman & Morrison 1950)."""
        asked = given.case.question
        for at, name in zip(given.positions, given.document_ids, strict=True):
            if name not in self.inverses:
                self.inverses[name] = np.eye(len(asked), dtype=np.float32)
                self.sums[name] = np.zeros(len(asked), dtype=np.float32)
            inverse = self.inverses[name]
            step = inverse @ asked
            inverse -= np.outer(step, step / (1.0 + asked @ step))
            expected = given.case.rows[at] @ asked if self.informed else 0.0
            self.sums[name] += np.float32((name in helpful) - expected) * asked
            self.models[name] = inverse @ self.sums[name]


class NeuralCache:
    """NeuralCache 0.3.2 in an interpreter of its own, with our vectors; see ``neuralcache_worker.py``."""

    def __init__(self, python: Path, seed: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.known: set[str] = set()
        self.seed = seed
        worker = Path(__file__).resolve().with_name("neuralcache_worker.py")
        # started in an empty folder: it reads a .env from where it is
        self.process = subprocess.Popen(
            [python, "-I", worker], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=self.folder.name
        )

    def ask(self, case: Case, *, shown: int) -> Shown:
        if not self.known:
            self._write({"width": len(case.question), "seed": self.seed})
        self._introduce(case)
        order = self._say({"ask": list(case.ids), "question": case.question.tolist()})["order"][:shown]
        return Shown(tuple(case.ids.index(name) for name in order), tuple(order), case)

    def tell(self, given: Shown, helpful: Sequence[str]) -> None:
        self._say({"tell": list(helpful)})

    def close(self) -> None:
        """End the worker."""
        self.process.communicate()
        self.folder.cleanup()

    def _introduce(self, case: Case) -> None:
        new = [at for at, name in enumerate(case.ids) if name not in self.known]
        if new:
            file = Path(self.folder.name) / "new.npy"
            np.save(file, case.rows[new])
            names = [case.ids[at] for at in new]
            self._say({"know": str(file), "ids": names, "texts": [case.texts[at] for at in new]})
            self.known.update(names)

    def _say(self, what: Mapping[str, object]) -> dict[str, list[str]]:
        self._write(what)
        answer = _open(self.process.stdout).readline()
        if not answer:
            raise RuntimeError(f"the NeuralCache worker ended with code {self.process.wait()}")
        return json.loads(answer)

    def _write(self, what: Mapping[str, object]) -> None:
        pipe = _open(self.process.stdin)
        pipe.write(json.dumps(what) + "\n")
        pipe.flush()


def _open(pipe: IO[str] | None) -> IO[str]:
    if pipe is None:
        raise RuntimeError("the worker has no pipe")
    return pipe


def peers(neuralcache: Path | None) -> dict[str, Callable[[int], Peer]]:
    """Return what makes each peer from a seed; NeuralCache only where an interpreter that has it is named."""
    made: dict[str, Callable[[int], Peer]] = {
        "input": lambda _: InputOrder(),
        "cold": lambda _: ColdOrder(),
        "counters": BetaCounters,
        "weights": SignalBandit,
        "linucb": lambda _: LinUCB(informed=False),
        "linucb+dense": lambda _: LinUCB(informed=True),
    }
    if neuralcache is not None:
        made["neuralcache"] = lambda seed: NeuralCache(neuralcache, seed)
    return made
