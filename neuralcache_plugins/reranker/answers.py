"""The way from an answer to feedback: what of the texts that were shown it used, and what that teaches."""

from __future__ import annotations

import json
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from neuralcache_plugins.attribution import Encode, attribute, likeness_by
from neuralcache_plugins.attribution.prompts import labels_in
from neuralcache_plugins.contracts import Attribution, Encoder, Ranking, RankingServed
from neuralcache_plugins.core.credit import checked_shares, shared
from neuralcache_plugins.encoders import LocalEncoder
from neuralcache_plugins.errors import InvalidInputError, MissingExtraError
from neuralcache_plugins.reranker.background import Background
from neuralcache_plugins.reranker.feedback import FeedbackStage, Telling, checked_value
from neuralcache_plugins.reranker.shown import Showing, ShownTexts

CAPACITY = 4_096

PATIENCE_SECONDS = 1.0
"""How long a judgement waits for those who are just reading the answer that it is about."""

Texts = Sequence[str] | Mapping[str, str]
"""The list that was ranked, or texts by document id."""


class SeenAnswers:
    """What the answers to recent rankings surely used: ids and probabilities, in memory only; the oldest goes.

    What they may have used as well gets no share: a little praise for all documents teaches nothing of their order
    (``benchmarks/markers.py``).
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, str], Mapping[str, float]] = OrderedDict()

    def keep(self, namespace: str, ranking_id: str, used: Mapping[str, float]) -> None:
        """Remember what the newest answer to a ranking used."""
        with self._lock:
            self._known[namespace, ranking_id] = used
            self._known.move_to_end((namespace, ranking_id))
            if len(self._known) > CAPACITY:
                self._known.popitem(last=False)

    def find(self, namespace: str, ranking_id: str) -> Mapping[str, float] | None:
        """Return what the answer used, if one was seen."""
        with self._lock:
            return self._known.get((namespace, ranking_id))

    def restart_after_fork(self) -> None:
        """Take a new lock in a forked child."""
        self._lock = threading.Lock()

    def forget(self) -> None:
        """Drop everything."""
        with self._lock:
            self._known.clear()


class AnswerStage:
    """Turns an answer into feedback for the rankings that it was made from."""

    def __init__(
        self,
        shown: ShownTexts,
        encoder: Encoder,
        *,
        feedback: FeedbackStage,
        key: Callable[[str], str],
    ) -> None:
        self._shown = shown
        self._feedback = feedback
        self._key = key
        self._seen = SeenAnswers()
        self._readers: weakref.WeakSet[Background] = weakref.WeakSet()
        # the weights hold for this encoder's cosines, and it costs nothing; another one's would be a call a sentence
        self._encode: Encode | None = likeness_by(encoder if isinstance(encoder, LocalEncoder) else LocalEncoder())

    def observe(
        self, rankings: Sequence[Any], answer: Any, *, texts: Texts | None, prompt: str | None, namespace: str,
        explicit: bool, now: float,
    ) -> Attribution:
        """Attribute the answer to what the rankings showed, and give each its feedback."""
        if texts is not None and len(rankings) != 1:
            raise InvalidInputError(f"texts belong to one ranking, got {len(rankings)} rankings")
        places = [(one, one.namespace if isinstance(one, Ranking) and not explicit else namespace) for one in rankings]
        showings = [self._showing(one, place, texts, explicit=explicit) for one, place in places]
        ids = [name for one in showings for name in one.ids]
        shown = [text for one in showings for text in one.texts]
        labels = labels_in(prompt, shown) if prompt else None
        found = self._attributed(
            answer, ids, shown, query=" ".join(one.query for one in showings), labels=labels,
            # two lists of documents have two first ones
            numbered=labels is None and len(showings) == 1,
        )
        tellings: dict[str, Telling] = {}
        for (one, place), showing in zip(places, showings, strict=True):
            ranking_id = _name_of(one)
            rewards = _among(found.rewards, showing.ids)
            if rewards:
                tellings[ranking_id] = Telling(one, None, place, True, found.source,
                                               self._name(ranking_id, found, rewards), rewards=rewards)
        given = self._feedback.tell_all(list(tellings.values()), now=now) if tellings else []
        for (one, place), showing in zip(places, showings, strict=True):
            self._seen.keep(place, _name_of(one), _among(found.rewards, showing.ids))
        return replace(found, feedback=dict(zip(tellings, given, strict=True)))

    def credit(
        self, ranking: Any, value: Any, *, query: Any, used: Any, answer: Any, namespace: str, explicit: bool,
        source: Any, feedback_id: Any, now: float,
    ) -> str:
        """Share what an answer was worth among the documents that it used; returns "" where it used none."""
        worth, given = checked_value(value), checked_shares(used)
        served = self._feedback.find(ranking, namespace, explicit, query)
        shares = self._used(served, answer) if given is None else given
        rewards = shared(served.document_ids, worth, used=shares)
        if not rewards:
            return ""
        meant = ranking if isinstance(ranking, Ranking) else served.ranking_id
        telling = Telling(meant, None, served.namespace, True, source, feedback_id, rewards=rewards)
        return self._feedback.tell_all([telling], now=now)[0]

    def seen(self, served: RankingServed) -> Mapping[str, float] | None:
        """Return what the answer to a ranking used, waiting for those who are reading answers; None if none was seen.

        They take milliseconds, and whoever judges an answer has read it first.
        """
        known = self._seen.find(served.namespace, served.ranking_id)
        if known is None and self.finish(PATIENCE_SECONDS):
            known = self._seen.find(served.namespace, served.ranking_id)
        return known

    def read_by(self, reader: Background) -> None:
        """Note who reads answers."""
        self._readers.add(reader)

    def finish(self, timeout_seconds: float) -> bool:
        """Wait for those who are reading answers; returns whether there are any and all have read them."""
        readers = list(self._readers)
        return bool(readers) and all([reader.flush(timeout_seconds) for reader in readers])

    def forget(self) -> None:
        """Drop what was seen and shown."""
        self._shown.forget()
        self._seen.forget()

    def restart_after_fork(self) -> None:
        """Take new locks in a forked child."""
        self._shown.restart_after_fork()
        self._seen.restart_after_fork()

    def _used(self, served: RankingServed, answer: Any) -> Mapping[str, float] | None:
        known = self._seen.find(served.namespace, served.ranking_id)
        if known is not None:
            return known
        showing = self._shown.find(served.namespace, served.ranking_id)
        if answer is None or showing is None:
            return self.seen(served)
        found = self._attributed(answer, showing.ids, showing.texts, query=showing.query)
        self._seen.keep(served.namespace, served.ranking_id, found.rewards)
        return found.rewards

    def _showing(self, ranking: Any, namespace: str, texts: Texts | None, *, explicit: bool) -> Showing:
        if not isinstance(ranking, (Ranking, str)):
            raise InvalidInputError(f"ranking must be a Ranking or its id, got {type(ranking).__name__}")
        if isinstance(ranking, Ranking) and not ranking.ids:
            return Showing("", (), ())
        ranking_id = ranking if isinstance(ranking, str) else ranking.ranking_id
        known = self._shown.find(namespace, ranking_id)
        if texts is None:
            if known is None:
                self._feedback.find(ranking, namespace, explicit)  # an unknown ranking is said to be just that
                raise InvalidInputError(
                    f"the texts of ranking {ranking_id} are no longer in memory (RerankSettings.shown_characters); "
                    "pass texts="
                )
            return known
        served = self._feedback.find(ranking, namespace, explicit)
        return Showing("" if known is None else known.query, served.document_ids, _texts(texts, served))

    def _attributed(self, answer: Any, ids: Sequence[str], texts: Sequence[str], **options: Any) -> Attribution:
        try:
            return attribute(answer, ids, texts, encode=self._encode, **options)
        except MissingExtraError:
            self._encode = None  # without the extra "local", words alone have to tell
            return attribute(answer, ids, texts, encode=None, **options)

    def _name(self, ranking_id: str, found: Attribution, rewards: Mapping[str, float]) -> str:
        """Return an id by which the same answer, observed twice, counts once."""
        return f"{found.source}-{ranking_id}-{self._key(json.dumps(rewards, sort_keys=True))[:12]}"


def _name_of(ranking: Ranking | str) -> str:
    return ranking.ranking_id if isinstance(ranking, Ranking) else ranking


def _among(values: Mapping[str, float], ids: Sequence[str]) -> dict[str, float]:
    return {name: value for name, value in values.items() if name in ids}


def _texts(texts: Texts, served: RankingServed) -> list[str]:
    if isinstance(texts, Mapping):
        missing = [name for name in served.document_ids if name not in texts]
        if missing:
            raise InvalidInputError(f"texts has no text of document {missing[0]!r}, which was shown")
        found = [texts[name] for name in served.document_ids]
    else:
        if isinstance(texts, str) or not isinstance(texts, Sequence):
            raise InvalidInputError(f"texts must be a list of str, or map ids to str; got {type(texts).__name__}")
        if len(texts) <= max(served.positions):
            raise InvalidInputError(
                f"texts must be the list that was ranked: position {max(served.positions)} was shown, got {len(texts)}"
            )
        found = [texts[position] for position in served.positions]
    if not all(isinstance(text, str) for text in found):
        raise InvalidInputError("texts must hold str only")
    return found
