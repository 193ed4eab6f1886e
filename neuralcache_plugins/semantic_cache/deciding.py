"""The policy as the decider of the semantic tier: cached questions in, proposals out, judged answers folded in."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from neuralcache_plugins.contracts import AnswerJudged, CachedQuestion, DocumentVersion
from neuralcache_plugins.errors import InvalidInputError
from neuralcache_plugins.semantic_cache.certificate import Certificate
from neuralcache_plugins.semantic_cache.features import CANDIDATES, FEATURES, Neighbour, Rarity
from neuralcache_plugins.semantic_cache.nearest import Near
from neuralcache_plugins.semantic_cache.parsing import Question, parse
from neuralcache_plugins.semantic_cache.policy import FORMAT, Decision, Label, Policy
from neuralcache_plugins.semantic_cache.proof import prove
from neuralcache_plugins.semantic_cache.proposals import Proposal
from neuralcache_plugins.settings import CacheSettings

PARSED = 20_000
"""Cached questions that are kept read. Reading one takes about 0.03 ms, a look asks for three."""

TESTED, CALIBRATED = "tested", "calibrated"
"""Sources of labels from a log that a calibration read: its pairs, which test and then teach, and its end."""

_UNREAD = parse("")

_POLICY_SETTINGS = ("max_error", "confidence", "audit_rate", "judge_error")


class PolicyDecider:
    """One ``Policy`` for each encoder, between the tier's entries and events; see ``semantic.Decider``.

    What was certified with one encoder's similarities says nothing of another's. Rare words are the same for all.
    """

    def __init__(self, settings: CacheSettings) -> None:
        self._settings = settings
        self._policies: dict[float, Policy] = {}
        self._latest = _number("")
        self._rarity = Rarity()
        self._parsed: OrderedDict[str, Question] = OrderedDict()
        self._logged: list[Label] = []

    @property
    def name(self) -> str:
        """What snapshots of this fold go by: another policy, or other limits, make another fold."""
        chosen = json.dumps([getattr(self._settings, name) for name in _POLICY_SETTINGS] + list(FEATURES))
        return f"answers-{FORMAT}-{hashlib.blake2b(chosen.encode(), digest_size=8).hexdigest()}"

    def quarantined_until(self, encoder: str) -> float:
        """Return the time of the last alarm; entries made until then are not to be looked at."""
        return self._policy(_number(encoder)).quarantined_until

    def note(self, cached: Sequence[CachedQuestion]) -> None:
        """Count the words of questions that were put into the cache."""
        for one in cached:
            self._rarity.note(self._question(one))

    def forget(self, gone: Collection[str]) -> None:
        """Drop what was read of entries that went; how often words occurred is kept."""
        for name in gone:
            self._parsed.pop(name, None)

    def decide(self, question: str, near: Sequence[Near], *, encoder: str, documents: tuple[DocumentVersion, ...],
               now: float, coin: float) -> Proposal:
        """Return what the encoder's policy says to a question, with all that a later label needs."""
        self._latest = _number(encoder)
        policy = self._policy(self._latest)
        fresh = [(place, one) for place, one in enumerate(near) if one.cached.created_at > policy.quarantined_until]
        neighbours = [
            # of those behind the candidates only the answer counts; reading one for the first time takes time
            Neighbour(place, one.similarity, self._question(one.cached) if rank < CANDIDATES else _UNREAD,
                      one.cached.answer, _names(one.cached.documents), one.cached.created_at)
            for rank, (place, one) in enumerate(fresh)
        ]
        decision = policy.decide(
            parse(question), neighbours, now=now, coin=coin, documents=_names(documents)
        )
        return Proposal(
            serve=None if decision.entry is None else near[decision.entry].cached.entry_id,
            candidate=None if decision.candidate is None else near[decision.candidate].cached.entry_id,
            score=decision.score,
            audit=decision.audit,
            reasons=decision.reasons,
            features={} if decision.candidate is None else told(decision, encoder, asked=now),
            propensity=decision.rate,
        )

    def learn(self, label: AnswerJudged) -> None:
        """Fold a judged answer in; one that nobody compared by its features, such as an exact hit, teaches nothing.

        A calibration's pairs follow each other in the log, and its end comes last: they are tested on and learned then.
        """
        if label.source == CALIBRATED:
            self._latest = label.features["encoder"]
            prove(self._policy(self._latest), self._logged, at=label.at)
            self._logged = []
        elif label.features.keys() >= {"encoder", "coin", "rate", *FEATURES}:
            self._latest = label.features["encoder"]
            self._learn(self._policy(self._latest), label)

    def rehearsal(self, encoder: str) -> Policy:
        """Return a copy of the encoder's policy to try a log on, with no words counted yet."""
        return Policy.unpack(*self._policy(_number(encoder)).pack(), self._settings)

    def certificate(self, *, reused: int) -> Certificate:
        """Return what may be said of the answers reused so far, with the encoder that was heard of last."""
        return self._policy(self._latest).certificate(reused=reused)

    def pack(self) -> bytes:
        """Return what was learned as bytes: a JSON header and plain arrays, no pickle."""
        packed = [policy.pack() for policy in self._policies.values()]
        header = {"encoders": list(self._policies), "latest": self._latest, "policies": [own for own, _ in packed]}
        arrays = {f"{place}.{name}": array for place, (_, own) in enumerate(packed) for name, array in own.items()}
        out = io.BytesIO()
        text = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
        np.savez(out, header=text, **arrays)  # type: ignore[arg-type]  # numpy's stub takes only keyword arrays
        return out.getvalue()

    @classmethod
    def unpack(cls, data: bytes, settings: CacheSettings) -> PolicyDecider:
        """Return what ``pack`` made bytes of; ``InvalidInputError`` if it cannot be read."""
        decider = cls(settings)
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            header: dict[str, Any] = json.loads(arrays["header"].tobytes())
            for place, (encoder, own) in enumerate(zip(header["encoders"], header["policies"], strict=True)):
                mine = {name.removeprefix(f"{place}."): array for name, array in arrays.items()
                        if name.startswith(f"{place}.")}
                policy = Policy.unpack(own, mine, settings)
                policy.rarity = decider._rarity
                decider._policies[encoder] = policy
            decider._latest = header["latest"]
        except (KeyError, TypeError, ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
            raise InvalidInputError(f"not a policy: {error}") from error
        return decider

    def _learn(self, policy: Policy, label: AnswerJudged) -> None:
        if label.source == TESTED:
            self._logged.append(_label(label))
        else:
            policy.learn(_label(label))

    def _policy(self, encoder: float) -> Policy:
        policy = self._policies.get(encoder)
        if policy is None:
            policy = self._policies[encoder] = Policy(self._settings, self._rarity)
        return policy

    def _question(self, cached: CachedQuestion) -> Question:
        known = self._parsed.get(cached.entry_id)
        if known is None:
            known = self._parsed[cached.entry_id] = parse(cached.question)
            if len(self._parsed) > PARSED:
                self._parsed.popitem(last=False)
        return known


def told(decided: Decision | Label, encoder: str, *, asked: float) -> Mapping[str, float]:
    """Return what a label in the log must hold for the fold, as numbers by name."""
    return {**dict(zip(FEATURES, decided.features.tolist(), strict=True)), "coin": decided.coin, "rate": decided.rate,
            "encoder": _number(encoder), "asked": asked}


def _names(documents: tuple[DocumentVersion, ...]) -> frozenset[str]:
    return frozenset([name for name, _ in documents]) if documents else frozenset()


@lru_cache(maxsize=64)
def _number(encoder: str) -> float:
    """Return the encoder's fingerprint as a number that a float holds exactly: labels are numbers by name."""
    return float(int.from_bytes(hashlib.blake2b(encoder.encode("utf-8", "surrogatepass"), digest_size=6).digest()))


def _label(judged: AnswerJudged) -> Label:
    return Label(
        features=np.array([judged.features[name] for name in FEATURES], dtype=np.float32),
        right=judged.correct,
        # a report is about a hit as an audit is, but nobody knows what is not reported
        served=judged.source in ("audit", "report"),
        coin=judged.features["coin"],
        rate=judged.features["rate"],
        at=judged.at,
        asked=judged.features.get("asked", judged.at),
        sampled=judged.source != "report",
    )
