"""What the person said next becomes feedback: in memory, per session, storing no text."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from neuralcache_plugins.contracts import Encoder, Ranking, Vector, session_part
from neuralcache_plugins.conversation.analysis import Analysis, Turn
from neuralcache_plugins.conversation.answers import Answered, answer_from, feedback_id
from neuralcache_plugins.conversation.catalogue import LANGUAGES, Catalogue, MarkerFile, catalogue
from neuralcache_plugins.conversation.detecting import STRONG, Detector, Hit, score
from neuralcache_plugins.conversation.folding import WINDOW
from neuralcache_plugins.conversation.messages import ASSISTANT, USER, Said, read
from neuralcache_plugins.conversation.repetition import Asked, asked
from neuralcache_plugins.core.vectors import unit_vector
from neuralcache_plugins.errors import InvalidInputError, NeuralCacheError

logger = logging.getLogger(__name__)

QUESTIONS = 3
"""A question may come again after so many others at most."""


class Feedback(Protocol):
    """What takes the feedback, such as ``Reranker.feedback`` or that of an adapter."""

    def __call__(self, ranking: Any, *, value: float, used: Mapping[str, float] | None, answer: str | None,
                 source: str, feedback_id: str) -> object:
        """Say what the answer made from a ranking was worth, in [-1, 1]; the same id twice counts once.

        ``used`` are the shares of documents as ``answered`` was told, ``answer`` the answer's words, where known:
        whoever takes the feedback shares the value among the documents. ``namespace=`` comes too where it was named.
        """


@dataclass(frozen=True, slots=True)
class Observation:
    """What one message of the user told.

    ``score`` in [-1, 1] judges the answer before it, ``decided_by`` names the marker. ``feedback`` is the value that
    was handed on for the ranking behind that answer, None where nothing was. ``narrative`` is the session's name for
    rerankings from now on: a new one after a change of topic, so that what helped before bends no question any more.
    """

    hits: tuple[Hit, ...]
    score: float
    decided_by: str | None
    narrative: str
    feedback: float | None = None


class _Told(NamedTuple):
    """What is handed on: what an answer was made from, its words, what it was worth, the marker that says so."""

    behind: Answered
    answer: str | None
    value: float
    hit: Hit


@dataclass(slots=True)
class _Session:
    """What is remembered of a conversation: its last questions and the ranking behind the last answer."""

    seen_at: float
    questions: deque[Asked] = field(default_factory=lambda: deque(maxlen=QUESTIONS))
    answered: Answered | None = None
    last: tuple[bytes, Observation] | None = None
    opening: tuple[float, Hit] | None = None
    part: int = 1


class ConversationMonitor:
    """Reads what users write next and tells ``feedback`` what it says of the answer before.

    ::

        monitor = ConversationMonitor(feedback=reranker.feedback)
        said = monitor.observe(session, messages)        # when a message has come: it judges the answer before
        ranking = reranker.rerank(question, texts, session=said.narrative)
        monitor.answered(session, ranking)               # what the answer to it was made from

    ``markers`` are files of your own beside the packaged ones (``catalogue``). With ``encoder`` a question asked again
    in other words is found by its vector too, and so is a change of topic that nobody announces. Feedback has the
    source ``marker:<id>`` and one id for each ranking, so that it counts once whoever repeats it; the reranker gives it
    to the documents that the answer used, as far as a handler, ``observe_answer`` or the answer itself (in
    ``messages``) tells it. Feedback that fails with an error of this package is counted (``failures``) and logged once;
    the conversation goes on.

    Keeps at most ``max_sessions``, each for ``expiry_seconds`` after its last message. Thread-safe.
    """

    def __init__(
        self,
        feedback: Feedback | Callable[..., object] | None = None,
        *,
        markers: Catalogue | Iterable[str | Path | MarkerFile] = (),
        languages: Sequence[str] = LANGUAGES,
        encoder: Encoder | None = None,
        max_sessions: int = 1_000,
        expiry_seconds: float = 3_600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if max_sessions < 1 or not expiry_seconds > 0:
            raise InvalidInputError(
                f"max_sessions must be at least 1 and expiry_seconds positive, got {max_sessions} and {expiry_seconds}"
            )
        if inspect.iscoroutinefunction(feedback):
            raise InvalidInputError("feedback must be a plain function, such as Reranker.feedback, got a coroutine's")
        self._feedback = feedback
        self.catalogue = markers if isinstance(markers, Catalogue) else catalogue(markers, languages=languages)
        self._detector = Detector(self.catalogue)
        self._encoder = encoder
        self._max_sessions = max_sessions
        self._expiry_seconds = expiry_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self.failures = 0
        """Feedback that could not be given, and messages that got no vector."""

    def __len__(self) -> int:
        return len(self._sessions)

    # the conversation goes on

    def observe(self, session: str, messages: Any) -> Observation:
        """Take in the user's newest message, the last of ``messages`` that is the user's; the rest is context.

        ``messages`` may be the whole history or the message alone, in any of the forms that ``messages.read`` takes.
        Observing the same message again before it was answered changes nothing. ``InvalidInputError`` for what is no
        message, and where none is the user's.
        """
        newest = _newest(messages)
        now = asked(newest.text, self._vector(newest.text))  # outside of the lock: an encoder may take its time
        digest = _digest(newest.text)
        with self._lock:
            known = self._session(session)
            if known.last is not None and known.last[0] == digest:
                return known.last[1]
            if not known.questions:
                known.questions.extend(map(asked, newest.earlier))
            observation, told = self._judge(session, known, newest, now)
            known.last = digest, observation
        if told is not None:
            self._give(told)
        return observation

    async def aobserve(self, session: str, messages: Any) -> Observation:
        """Do what ``observe`` does, beside the event loop."""
        return await asyncio.to_thread(self.observe, session, messages)

    def answered(
        self,
        session: str,
        ranking: Ranking | str | Iterable[Ranking | str] | None,
        *,
        used: Mapping[str, float] | None = None,
        namespace: str | None = None,
    ) -> None:
        """Say what the answer to the message observed last was made from: a ``Ranking``, its id, or several.

        Adapters put the id into what they return (``ranking_id_key``), so it travels with the documents through chains
        and engines. None says that there was no ranking. ``used`` tells in [0, 1] how far each document went into the
        answer, for those who know it better than the reranker will. ``namespace`` is the ranking's where that is not
        the one that ``feedback`` looks in. ``InvalidInputError`` for anything else.
        """
        behind = answer_from(ranking, used, namespace)
        told = None
        with self._lock:
            known = self._session(session)
            known.answered = behind
            known.last = None  # the same words once more are said anew
            if known.opening is not None:
                told = self._credit(behind, None, *known.opening)
                known.opening = None
        if told is not None:
            self._give(told)

    def narrative(self, session: str) -> str:
        """Return the session's name for rerankings: another after each change of topic."""
        with self._lock:
            known = self._sessions.get(session)
            return session if known is None else session_part(session, known.part)

    def forget(self, session: str | None = None) -> None:
        """Drop what is remembered of a session, or of all."""
        with self._lock:
            if session is None:
                self._sessions.clear()
            else:
                self._sessions.pop(session, None)

    # at leisure

    def analyze(self, messages: Any) -> Analysis:
        """Return what a whole conversation tells, turn by turn. Gives no feedback and remembers nothing."""
        turns: list[Turn] = []
        questions: deque[Asked] = deque(maxlen=QUESTIONS)
        topic, was_asked, answer = 1, False, None
        for index, one in enumerate(read(messages)):
            if one.role != USER:
                if one.role == ASSISTANT:
                    was_asked, answer = _is_question(one), asked(one.text)
                continue
            now = asked(one.text, self._vector(one.text))
            hits = self._detector.hits(one.text, now=now, before=questions, was_asked=was_asked, answer=answer)
            topic += bool(turns) and any(hit.resets_narrative for hit in hits)
            value, decisive = score(hits) if turns else (0.0, None)
            opening, _ = score(hits, scope="same")
            name = None if decisive is None else decisive.marker
            turns.append(Turn(index, one.text, tuple(hits), value, name, opening, topic))
            questions.append(now)
            was_asked, answer = False, None
        return Analysis(tuple(turns))

    # in turn

    def _judge(
        self, session: str, known: _Session, newest: _Newest, now: Asked
    ) -> tuple[Observation, _Told | None]:
        hits = self._detector.hits(newest.text, now=now, before=known.questions, was_asked=newest.was_asked,
                                   answer=None if newest.answer is None else asked(newest.answer))
        behind, known.answered = known.answered, None
        first = not known.questions and behind is None  # nothing was answered, so nothing is judged
        known.questions.append(now)
        if not first and any(hit.resets_narrative for hit in hits):
            known.part += 1
        value, decisive = (0.0, None) if first else score(hits)
        opening, opener = score(hits, scope="same")
        known.opening = None if opener is None else (opening, opener)
        told = None if behind is None or decisive is None else self._credit(behind, newest.answer, value, decisive)
        observation = Observation(
            tuple(hits), value, None if decisive is None else decisive.marker, session_part(session, known.part),
            None if told is None else told.value,
        )
        return observation, told

    def _credit(self, behind: Answered, answer: str | None, value: float, hit: Hit) -> _Told | None:
        if self._feedback is None or not behind.rankings or abs(value) < STRONG:
            return None
        return _Told(behind, answer, value, hit)

    def _give(self, told: _Told) -> None:
        if self._feedback is None:
            return
        place = {} if told.behind.namespace is None else {"namespace": told.behind.namespace}
        for ranking in told.behind.rankings:
            try:
                self._feedback(
                    ranking, value=told.value, used=told.behind.used, answer=told.answer, source=told.hit.source,
                    feedback_id=feedback_id(ranking), **place,
                )
            except NeuralCacheError as error:
                self.failures += 1
                if self.failures == 1:
                    logger.warning("feedback of markers could not be given (logged once): %s", error)

    def _session(self, session: Any) -> _Session:
        """Return the session, made when it is new or has expired; the stalest goes for it."""
        if not isinstance(session, str) or not session:
            raise InvalidInputError(f"session must be a non-empty str, got {session!r}")
        now = self._clock()
        while self._sessions:
            stalest = next(iter(self._sessions))
            if now - self._sessions[stalest].seen_at <= self._expiry_seconds:
                break
            del self._sessions[stalest]
        known = self._sessions.pop(session, _Session(now))
        known.seen_at = now
        self._sessions[session] = known
        if len(self._sessions) > self._max_sessions:
            self._sessions.popitem(last=False)
        return known

    def _vector(self, said: str) -> Vector | None:
        """Return the unit vector of a message, None where there is no encoder or it has nothing to say."""
        if self._encoder is None or not said.strip():
            return None
        try:
            return unit_vector(self._encoder.embed_query(said[: 2 * WINDOW]), name="the vector of a message")
        except Exception as error:  # noqa: BLE001  # foreign code: whatever it raises must not end a conversation
            self.failures += 1
            logger.warning("a message has no vector and is compared by its words: %s", type(error).__name__)
            return None


class _Newest(NamedTuple):
    """The user's last message, and whether the assistant's words before it were a question.

    ``answer`` is the last that the assistant said in words since the message before, None if that is not known;
    ``earlier`` are the user's messages before.
    """

    text: str
    was_asked: bool
    answer: str | None
    earlier: list[str]


def _newest(messages: Any) -> _Newest:
    history = read(messages)
    last = next((place for place in range(len(history) - 1, -1, -1) if history[place].role == USER), None)
    if last is None:
        raise InvalidInputError("no message of the user is among those observed")
    before = next((one for one in reversed(history[:last]) if one.role in (USER, ASSISTANT)), None)
    earlier = [one.text for one in history[:last] if one.role == USER]
    was_asked = before is not None and before.role == ASSISTANT and _is_question(before)
    asked_at = next((place for place in range(last - 1, -1, -1) if history[place].role == USER), -1)
    answers = [one.text for one in history[asked_at + 1 : last] if one.role == ASSISTANT and one.text.strip()]
    return _Newest(history[last].text, was_asked, answers[-1] if answers else None, earlier[-QUESTIONS:])


def _is_question(said: Said) -> bool:
    return said.text.rstrip(" \t\r\n\"'*_)]").endswith(("?", "\uff1f", "\u061f"))


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
