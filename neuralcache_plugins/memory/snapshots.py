"""A learned state as bytes, and back: one JSON header and plain arrays in an ``npz`` archive, no pickle.

Question vectors come from the log as float16, so float16 in the archive loses nothing.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from array import array
from collections import OrderedDict
from typing import Any

import numpy as np

from neuralcache_plugins.contracts import Vector
from neuralcache_plugins.memory.course import Decision
from neuralcache_plugins.memory.documents import COLUMNS
from neuralcache_plugins.memory.questions import Origin, Questions
from neuralcache_plugins.memory.state import LearnedState, Learner, Waiting
from neuralcache_plugins.settings import RerankSettings

FORMAT = 12
_STATE_NUMBERS = (
    "position", "rankings", "feedback", "first_feedback_at", "last_feedback_at", "answer_rate",
)
_SPREAD_NUMBERS = ("mean", "variance", "count", "seen")
_TRUST_NUMBERS = ("tests",)
_TRUST_ARRAYS = ("weights", "squares", "over_cold", "over_avoidance", "sharpness_evidence")
_CHANGES_NUMBERS = ("misses", "claims")
_COURSE_NUMBERS = ("seen", "stride", "tests")
_FOLD_SETTINGS = (
    "half_life_seconds", "narrative_rate", "questions_per_document", "max_documents", "max_questions", "max_sessions",
    "source_weights",
)


def fold_name(settings: RerankSettings) -> str:
    """Return the name of the fold that these settings make: snapshots of another fold are not this one's."""
    chosen = json.dumps([getattr(settings, name) for name in _FOLD_SETTINGS], sort_keys=True)
    return f"{FORMAT}-{hashlib.blake2b(chosen.encode(), digest_size=8).hexdigest()}"


def pack(state: LearnedState) -> bytes:
    """Return the whole state as bytes. O(size)."""
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    documents = state.documents
    order = np.array(list(documents.slots.values()), dtype=np.int64)
    for name in COLUMNS:
        arrays[name] = np.array(getattr(documents, name))[order]
    place = {slot: index for index, slot in enumerate(order.tolist())}
    header = {
        "format": FORMAT,
        **{name: getattr(state, name) for name in _STATE_NUMBERS},
        "documents": list(documents.slots),
        "rewards_total": documents.rewards_total,
        "gain": vars(state.gain),
        "sources": state.sources.table(),
        "satisfaction": state.satisfaction.table(),
        "waiting": [
            [key, row.encoder, list(row.document_ids), list(row.cold), list(row.uncommon), row.position, row.served]
            for key, row in state.waiting.items()
        ],
        "learners": [
            _pack_learner(f"{index}", encoder, learner, place, arrays)
            for index, (encoder, learner) in enumerate(state.learners.items())
        ],
    }
    for index, row in enumerate(state.waiting.values()):
        if row.question is not None:
            arrays[f"waiting.{index}"] = row.question.astype(np.float16)
    out = io.BytesIO()
    text = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    np.savez(out, header=text, **arrays)  # type: ignore[arg-type]  # numpy's stub takes only keyword arrays
    return out.getvalue()


def unpack(data: bytes, settings: RerankSettings) -> LearnedState:
    """Return the state that ``pack`` turned into ``data``; ``ValueError`` if it is not one. O(size)."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        header = json.loads(arrays["header"].tobytes())
        if header["format"] != FORMAT:
            raise ValueError(f"snapshot format {header['format']}, expected {FORMAT}")
        return _restore(header, arrays, settings)
    except (KeyError, ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"not a snapshot: {error}") from error


def _restore(header: dict[str, Any], arrays: dict[str, np.ndarray[Any, Any]], settings: RerankSettings) -> LearnedState:
    state = LearnedState(settings)
    for name in _STATE_NUMBERS:
        setattr(state, name, header[name])
    vars(state.gain).update(header["gain"])
    state.sources.restore(header["sources"])
    state.satisfaction.restore(header["satisfaction"])
    documents = state.documents
    documents.slots = OrderedDict((document_id, slot) for slot, document_id in enumerate(header["documents"]))
    documents.rewards_total = header["rewards_total"]
    for name in COLUMNS:
        setattr(documents, name, array("d", arrays[name].tobytes()))
    for index, (key, encoder, document_ids, cold, uncommon, position, served) in enumerate(header["waiting"]):
        question = _vector(arrays, f"waiting.{index}")
        state.waiting[key] = Waiting(
            encoder, question, tuple(document_ids), tuple(cold), tuple(uncommon), position, served
        )
    for index, packed in enumerate(header["learners"]):
        state.learners[packed["encoder"]] = _restore_learner(f"{index}", packed, arrays, settings)
    return state


def _pack_learner(
    prefix: str, encoder: str, learner: Learner, place: dict[int, int], arrays: dict[str, np.ndarray[Any, Any]]
) -> dict[str, Any]:
    _pack_questions(f"{prefix}.helped", learner.helped, place, arrays)
    _pack_questions(f"{prefix}.failed", learner.failed, place, arrays)
    arrays[f"{prefix}.recent"] = learner.spread.recent.astype(np.float16)
    arrays[f"{prefix}.centre"] = learner.spread.centre
    for name in _TRUST_ARRAYS:
        arrays[f"{prefix}.{name}"] = getattr(learner.trust, name)
    arrays[f"{prefix}.slopes"] = learner.slopes.of(list(place))
    arrays[f"{prefix}.changes"] = np.array(learner.changes.table(place), dtype=np.float64).reshape(-1, 6)
    arrays[f"{prefix}.course"] = learner.course.table()
    if learner.narrative is not None:
        arrays[f"{prefix}.narrative"] = learner.narrative
    if learner.sessions:
        arrays[f"{prefix}.sessions"] = np.stack(list(learner.sessions.values()))
    return {
        "encoder": encoder,
        "width": learner.width,
        "sessions": list(learner.sessions),
        "spread": {name: getattr(learner.spread, name) for name in _SPREAD_NUMBERS},
        "trust": {name: getattr(learner.trust, name) for name in _TRUST_NUMBERS},
        "changes": {name: getattr(learner.changes, name) for name in _CHANGES_NUMBERS},
        "successors": learner.successors.table(),
        "fruitless": learner.fruitless.table(),
        "course": {name: getattr(learner.course, name) for name in _COURSE_NUMBERS},
        "decision": learner.course.decision,
    }


def _restore_learner(
    prefix: str, packed: dict[str, Any], arrays: dict[str, np.ndarray[Any, Any]], settings: RerankSettings
) -> Learner:
    learner = Learner(packed["width"], settings)
    _restore_questions(f"{prefix}.helped", learner.helped, arrays)
    _restore_questions(f"{prefix}.failed", learner.failed, arrays)
    for name, value in packed["spread"].items():
        setattr(learner.spread, name, value)
    learner.spread.recent = arrays[f"{prefix}.recent"].astype(np.float32)
    learner.spread.centre = arrays[f"{prefix}.centre"]
    for name, value in packed["trust"].items():
        setattr(learner.trust, name, value)
    for name in _TRUST_ARRAYS:
        setattr(learner.trust, name, arrays[f"{prefix}.{name}"])
    learner.slopes.restore(arrays[f"{prefix}.slopes"])
    for name, value in packed["changes"].items():
        setattr(learner.changes, name, value)
    learner.changes.restore(arrays[f"{prefix}.changes"].tolist())
    learner.successors.restore(packed["successors"])
    learner.fruitless.restore(packed["fruitless"])
    for name, value in packed["course"].items():
        setattr(learner.course, name, value)
    learner.course.restore(arrays[f"{prefix}.course"])
    if packed["decision"] is not None:
        learner.course.decision = Decision(*packed["decision"])
    learner.narrative = arrays.get(f"{prefix}.narrative")
    for index, session in enumerate(packed["sessions"]):
        learner.sessions[session] = arrays[f"{prefix}.sessions"][index]
    return learner


def _pack_questions(
    prefix: str, questions: Questions, place: dict[int, int], arrays: dict[str, np.ndarray[Any, Any]]
) -> None:
    groups = list(questions.groups())
    arrays[f"{prefix}.slots"] = np.array([place[slot] for slot, _, _, _ in groups], dtype=np.int64)
    arrays[f"{prefix}.sizes"] = np.array([len(rows) for _, rows, _, _ in groups], dtype=np.int64)
    if groups:
        arrays[f"{prefix}.rows"] = np.concatenate([rows for _, rows, _, _ in groups]).astype(np.float16)
        arrays[f"{prefix}.weights"] = np.concatenate([weights for _, _, weights, _ in groups])
        arrays[f"{prefix}.origins"] = np.concatenate([np.array(origins) for _, _, _, origins in groups])


def _restore_questions(prefix: str, questions: Questions, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
    end = 0
    for slot, size in zip(arrays[f"{prefix}.slots"].tolist(), arrays[f"{prefix}.sizes"].tolist(), strict=True):
        start, end = end, end + size
        rows = arrays[f"{prefix}.rows"][start:end].astype(np.float32)
        origins = [Origin(*pair) for pair in arrays[f"{prefix}.origins"][start:end].tolist()]
        questions.restore(slot, rows, arrays[f"{prefix}.weights"][start:end], origins)


def _vector(arrays: dict[str, np.ndarray[Any, Any]], name: str) -> Vector | None:
    row = arrays.get(name)
    return None if row is None else row.astype(np.float32)
