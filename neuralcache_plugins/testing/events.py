"""Events to feed a store, and what it hands back compared with them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from neuralcache_plugins.contracts import (
    SIGNALS,
    Event,
    FeedbackGiven,
    RankingServed,
    Recorded,
    TelemetryStore,
    Vector,
)


def make_ranking(ranking_id: str = "ranking-1", *, namespace: str = "default", at: float = 1_800_000_000.0,
                 documents: Sequence[str] = ("a", "b", "c"), width: int | None = 8, seed: int = 0,
                 **changes: Any) -> RankingServed:
    """Return a plausible ranking of these documents; ``width=None`` for one without a query vector."""
    rng = np.random.default_rng(seed)
    shown = len(documents)
    ranking = RankingServed(
        ranking_id=ranking_id, namespace=namespace, at=at, query_key=f"key-{seed}", encoder=f"hashing-{width}",
        query_vector=None if width is None else unit_vector(rng, width), document_ids=tuple(documents),
        positions=tuple(range(shown)), scores=tuple(1 / (2 + rank) for rank in range(shown)),
        cold=tuple(math.log(1 / (2 + rank)) for rank in range(shown)),
        signals={name: tuple(float(value) for value in rng.normal(size=shown)) for name in SIGNALS},
        propensities=(1.0,) * shown, candidates=shown + 5,
    )
    return replace(ranking, **changes)


def make_feedback(ranking: RankingServed | None = None, *, feedback_id: str = "feedback-1", **changes: Any,
                  ) -> FeedbackGiven:
    """Return feedback that praises the first document of a ranking, one second after it."""
    about = ranking or make_ranking()
    feedback = FeedbackGiven(
        feedback_id=feedback_id, ranking_id=about.ranking_id, namespace=about.namespace, at=about.at + 1.0,
        source="user", rewards=((about.document_ids[0], 1.0),), ranking=about, document_vector=about.query_vector,
    )
    return replace(feedback, **changes)


def assert_same_event(expected: Event, actual: Event) -> None:
    """Check all fields: times and texts exactly, vectors to half precision, other numbers to six digits."""
    assert type(actual) is type(expected)
    for each in fields(expected):
        wanted, got = getattr(expected, each.name), getattr(actual, each.name)
        if each.name == "ranking":
            assert_same_event(wanted, got)
        elif wanted is None or each.name == "at":
            assert got == wanted, each.name
        elif isinstance(wanted, np.ndarray):
            assert got.dtype == np.float32, each.name
            np.testing.assert_allclose(got, wanted, atol=1e-3, err_msg=each.name)
        else:
            _assert_close(wanted, got, each.name)


def read_all(store: TelemetryStore, *, namespace: str | None = None, batch: int = 100) -> list[Recorded]:
    """Read the whole log in batches, as a reader that catches up does."""
    entries: list[Recorded] = []
    while found := store.read(after=entries[-1].position if entries else 0, namespace=namespace, limit=batch):
        entries.extend(found)
    return entries


def unit_vector(rng: np.random.Generator, width: int) -> Vector:
    """Return a random float32 row of length 1, (width,)."""
    row = rng.normal(size=width).astype(np.float32)
    return row / np.float32(np.linalg.norm(row))


def _assert_close(wanted: Any, got: Any, name: str) -> None:
    if isinstance(wanted, float):
        assert type(got) is float, name
        assert got == pytest.approx(wanted, rel=1e-5), name
    elif isinstance(wanted, tuple):
        assert type(got) is tuple, name
        assert len(got) == len(wanted), name
        for one, other in zip(wanted, got, strict=True):
            _assert_close(one, other, name)
    elif isinstance(wanted, dict):
        assert list(got) == list(wanted), name
        for key in wanted:
            _assert_close(wanted[key], got[key], f"{name}[{key}]")
    else:
        assert got == wanted, name
