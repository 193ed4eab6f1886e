"""The way from an answer to feedback: the texts that were shown, what of them was used, and what that teaches."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from neuralcache_plugins.attribution import Encode, attribute, likeness_by
from neuralcache_plugins.attribution.prompts import labels_in
from neuralcache_plugins.contracts import Attribution, Encoder, Ranking, RankingServed
from neuralcache_plugins.encoders import LocalEncoder
from neuralcache_plugins.errors import InvalidInputError, MissingExtraError

CAPACITY = 4_096

Texts = Sequence[str] | Mapping[str, str]
"""The list that was ranked, or texts by document id."""


@dataclass(frozen=True, slots=True)
class Showing:
    """What one ranking showed: the question, and ids and texts in the order shown."""

    query: str
    ids: Sequence[str]
    texts: Sequence[str]

    @property
    def size(self) -> int:
        """Characters."""
        return len(self.query) + sum(map(len, self.texts))


class ShownTexts:
    """The texts that recent rankings showed, in memory only. Bounded by characters; the oldest ranking goes."""

    def __init__(self, characters: int) -> None:
        self._room = characters
        self._used = 0
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, str], tuple[int, Showing]] = OrderedDict()

    def keep(self, namespace: str, ranking_id: str, showing: Showing) -> None:
        """Remember what a ranking showed; one that has not room enough alone is not kept."""
        size = showing.size
        if size > self._room:
            return
        with self._lock:
            self._known[namespace, ranking_id] = size, showing
            self._used += size
            while self._used > self._room or len(self._known) > CAPACITY:
                self._used -= self._known.popitem(last=False)[1][0]

    def find(self, namespace: str, ranking_id: str) -> Showing | None:
        """Return what a ranking showed, if it is still known."""
        with self._lock:
            return self._known.get((namespace, ranking_id), (0, None))[1]

    def restart_after_fork(self) -> None:
        """Take a new lock in a forked child: another thread of the parent may have held the old one."""
        self._lock = threading.Lock()

    def forget(self) -> None:
        """Drop everything."""
        with self._lock:
            self._known.clear()
            self._used = 0


class AnswerStage:
    """Turns an answer into feedback for the rankings that it was made from."""

    def __init__(
        self,
        shown: ShownTexts,
        encoder: Encoder,
        *,
        find: Callable[[Any, str, bool], RankingServed],
        tell: Callable[..., str],
        key: Callable[[str], str],
    ) -> None:
        self._shown = shown
        self._find = find
        self._tell = tell
        self._key = key
        # the weights hold for this encoder's cosines, and it costs nothing; another one's would be a call a sentence
        self._encode: Encode | None = likeness_by(encoder if isinstance(encoder, LocalEncoder) else LocalEncoder())

    def observe(
        self, rankings: Sequence[Any], answer: Any, *, texts: Texts | None, prompt: str | None, namespace: str,
        explicit: bool,
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
        given = {}
        for (one, place), showing in zip(places, showings, strict=True):
            rewards = {name: reward for name, reward in found.rewards.items() if name in showing.ids}
            if rewards:
                ranking_id = one.ranking_id if isinstance(one, Ranking) else one
                given[ranking_id] = self._tell(
                    one, place, rewards=rewards, source=found.source, feedback_id=self._name(ranking_id, found, rewards)
                )
        return replace(found, feedback=given)

    def restart_after_fork(self) -> None:
        """Take new locks in a forked child."""
        self._shown.restart_after_fork()

    def _showing(self, ranking: Any, namespace: str, texts: Texts | None, *, explicit: bool) -> Showing:
        if not isinstance(ranking, (Ranking, str)):
            raise InvalidInputError(f"ranking must be a Ranking or its id, got {type(ranking).__name__}")
        if isinstance(ranking, Ranking) and not ranking.ids:
            return Showing("", (), ())
        ranking_id = ranking if isinstance(ranking, str) else ranking.ranking_id
        known = self._shown.find(namespace, ranking_id)
        if texts is None:
            if known is None:
                self._find(ranking, namespace, explicit)  # an unknown ranking is said to be just that
                raise InvalidInputError(
                    f"the texts of ranking {ranking_id} are no longer in memory (RerankSettings.shown_characters); "
                    "pass texts="
                )
            return known
        served = self._find(ranking, namespace, explicit)
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
