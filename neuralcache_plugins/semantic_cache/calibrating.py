"""Calibration of a cache: a log of questions and answers becomes judged pairs in the log of the store, and entries.

What is certified is folded from the store's log like everything else, so every process has it, also after a restart.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from neuralcache_plugins.contracts import AnswerEvent, AnswerJudged, AnswerStore, Vector
from neuralcache_plugins.errors import InvalidInputError
from neuralcache_plugins.semantic_cache.calibration import Calibration, Logged, Played, calibrate
from neuralcache_plugins.semantic_cache.deciding import CALIBRATED, TESTED, told
from neuralcache_plugins.semantic_cache.judges import Judge
from neuralcache_plugins.semantic_cache.records import Line
from neuralcache_plugins.semantic_cache.report import CalibrationReport
from neuralcache_plugins.semantic_cache.semantic import SemanticTier

Progress = Callable[[int, int], object]

_CHUNK = 500


@dataclass(frozen=True, slots=True)
class Prepared:
    """The usable lines, each question once per scope, with vectors; and the entry of each line, by place."""

    lines: tuple[Line, ...]
    vectors: tuple[Vector, ...]
    entries: tuple[str, ...]
    encoder: str
    repeats: int
    unusable: int


class CalibrateStage:
    """Plays a log and records what it taught and proved."""

    def __init__(self, store: AnswerStore, namespace: str, semantic: SemanticTier, clock: Callable[[], float]) -> None:
        self._store = store
        self._namespace = namespace
        self._semantic = semantic
        self._clock = clock

    def prepare(self, lines: Sequence[Line]) -> Prepared:
        """Embed the questions, each once; ``EncoderError`` if the encoder fails, and nothing is recorded then."""
        first: dict[tuple[str, str], Line] = {}
        for line in lines:
            first.setdefault(line.asked.key, line)
        distinct = list(first.values())
        rows: list[Vector | None] = []
        encoder = ""
        for start in range(0, len(distinct), _CHUNK):
            named, found = self._semantic.vectors([line.asked.question for line in distinct[start:start + _CHUNK]])
            encoder = encoder or named
            rows += found
        usable = [(line, row) for line, row in zip(distinct, rows, strict=True) if row is not None]
        return Prepared(
            lines=tuple(line for line, _ in usable), vectors=tuple(row for _, row in usable),
            entries=tuple(os.urandom(16).hex() for _ in usable), encoder=encoder,
            repeats=len(lines) - len(distinct), unusable=len(distinct) - len(usable),
        )

    def run(self, prepared: Prepared, judge: Judge, *, progress: Progress | None) -> tuple[Calibration, int]:
        """Play the log, record what came of it in one step, and return it with how many lines were known before."""
        names = [_name(line) for line in prepared.lines]
        before = self._recorded()
        known = max((place + 1 for place, name in enumerate(names) if name in before), default=0)
        answers = {line.payload: line.answer for line in prepared.lines}
        log = [
            Logged(line.asked.question, row, line.payload, line.asked.documents, line.asked.scope)
            for line, row in zip(prepared.lines, prepared.vectors, strict=True)
        ]
        found = calibrate(
            log, same=lambda cached, fresh: judge(answers[cached], answers[fresh]),  # type: ignore[index]
            policy=self._semantic.rehearsal(prepared.encoder), known=known, progress=progress,
        )
        if found.judged:
            self._store.record_answers(self._events(prepared, names, found))
        return found, known

    def _recorded(self) -> set[str]:
        """Return the names of the lines that tested before: a line must never do so twice."""
        found: set[str] = set()
        after = 0
        while entries := self._store.read_answer_events(after=after, namespace=self._namespace, kinds=[AnswerJudged]):
            after = entries[-1].position
            found.update(entry.event.judged_id for entry in entries
                         if isinstance(entry.event, AnswerJudged) and entry.event.source == TESTED)
        return found

    def _events(self, prepared: Prepared, names: Sequence[str], found: Calibration) -> list[AnswerEvent]:
        now = self._clock()

        def event(played: Played) -> AnswerJudged:
            line = prepared.lines[played.place]
            return AnswerJudged(
                judged_id=names[played.place], entry_id=prepared.entries[played.cached], namespace=self._namespace,
                at=now, scope=line.asked.scope, correct=played.label.right, source=TESTED, score=played.score,
                features=told(played.label, prepared.encoder, asked=now),
            )

        pairs = [event(played) for played in found.judged]
        end = AnswerJudged(
            judged_id=f"calibrated-{os.urandom(8).hex()}", entry_id="", namespace=self._namespace, at=now, scope="",
            correct=found.proof.passed > 0, source=CALIBRATED, features={"encoder": pairs[-1].features["encoder"]},
        )
        return [*pairs, end]


def check_scopes(lines: Sequence[Line]) -> None:
    """Refuse lines that could be put nowhere."""
    lost = next((number for number, line in enumerate(lines, 1) if not line.has_scope), None)
    if lost is not None:
        raise InvalidInputError(f"record {lost} names no scope, so nobody would find its answer: say which you look up "
                                "with (scope=, --scope), or only learn from the log (put=False, --no-put)")


def _name(line: Line) -> str:
    """Return what a line goes by in the log: the question's keyed hash with the scope's, and the answer's."""
    kind, payload = line.payload
    digest = hashlib.blake2b(payload, key=line.asked.key[1].encode(), person=kind.encode(), digest_size=8)
    return f"line-{line.asked.key[1]}-{digest.hexdigest()}"


def report_of(prepared: Prepared, found: Calibration, *, known: int, judge: Judge, stored: int, namespace: str,
              certificate: Any) -> CalibrationReport:
    """Return what is told to people."""
    return CalibrationReport(
        namespace=namespace, encoder=prepared.encoder, judge=judge.name, questions=len(prepared.lines),
        repeats=prepared.repeats, unusable=prepared.unusable, known=known, judged_pairs=len(found.judged),
        proof=found.proof, stored=stored, certificate=certificate,
    )
