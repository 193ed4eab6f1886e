"""Which of the shown documents an answer used: citations first, else evidence of use, as a probability.

The weights below were fitted by ``benchmarks/feedback.py --fit`` on one half of the conversations of mtrag-clapnq and
mtrag-fiqa and of the articles of squad, and judged on the other halves and on scifact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from neuralcache_plugins.attribution.abstention import abstains
from neuralcache_plugins.attribution.citations import Labels, read
from neuralcache_plugins.attribution.evidence import MEANING, WORDS, Encode, features, sentences, weighed
from neuralcache_plugins.contracts import CITATION, CONTEXT_USE, Array, Attribution, Encoder, Matrix
from neuralcache_plugins.core.vectors import unit_rows

__all__ = ["Encode", "attribute", "likeness_by"]


class Weights(NamedTuple):
    """Log-odds: a constant, and one weight per feature."""

    constant: float
    of: tuple[float, ...]


BY_WORDS = Weights(-3.22, (0.48, 1.26, 1.24, 1.56, 1.28, 1.95, 1.95))
BY_WORDS_AND_MEANING = Weights(-3.50, (0.47, 1.30, 1.18, 1.42, 1.24, 1.87, 1.82, 0.94))

CITED = 4.0
NOT_CITED = -2.0
LEAST_CITED = -1.0
"""Log-odds that a citation adds, and that its absence takes where others are cited. An answer may share few words with
what it cites, so its evidence counts ``LEAST_CITED`` at least; but where another document has far more, the numbers of
the prompt were others or the citation is made up, and the evidence decides."""

HEDGED = -1.5
"""Log-odds that a sentence without an answer takes from what the other sentences say."""

SURE = 0.7
"""A document is rewarded, with its probability, from here on. What was not used gets no reward and no penalty: ranking
it lower because others were used is what learning from those does already."""

ADDS = 0.25
"""A document must have at least this share of its evidence to itself: what a better one has too tells nothing of it."""

_ENOUGH_WORDS = 3
_LARGEST = 30.0


def attribute(
    answer: Any, ids: Sequence[str], texts: Sequence[str], *, query: str = "",
    labels: Mapping[str, int] | None = None, numbered: bool = True, encode: Encode | None = None,
) -> Attribution:
    """Return which of the documents, given in the order shown by ``ids`` (n,) and ``texts`` (n,), the answer used.

    ``answer`` is a str, or a mapping, list or model with text and the ids of its sources. ``labels`` map what a
    citation may say to positions; without them ``[2]`` is the second document, unless ``numbered`` is False. Words of
    ``query`` count little. ``encode`` (texts -> unit rows) adds likeness by meaning.

    A document shown twice counts once. Milliseconds for ten passages and an answer of a page.
    """
    places = _first_places(ids)
    names, shown = [ids[place] for place in places], [texts[place] for place in places]
    known = Labels(names, _moved(labels, places), numbered and len(places) == len(ids))
    reading = read(answer, known, shown)
    cited = known.positions(reading.named)
    parts = sentences(reading.text)
    said = [part for part in parts if not abstains(part, shown)]
    hedged = len(said) < len(parts)
    table = features(said, shown, query=query, encode=encode)
    weights = BY_WORDS if encode is None else BY_WORDS_AND_MEANING
    logits = weights.constant + weighed(table) @ np.array(weights.of) + (HEDGED if hedged else 0.0)
    if cited:
        logits = _with_citations(logits, cited)
    abstained = hedged and not cited and _says_nothing(said)
    return _attribution(names, logits, cited, abstained=abstained, table=table,
                        columns=WORDS if encode is None else (*WORDS, *MEANING))


def likeness_by(encoder: Encoder) -> Encode:
    """Return ``encode`` for ``attribute``: unit rows of the encoder, zeros where it gives none."""
    def encode(texts: list[str]) -> Matrix:
        values = np.asarray(encoder.embed_documents(texts), dtype=np.float32)
        return unit_rows(values, count=len(texts), width=values.shape[1])[0]

    return encode


def _attribution(names: Sequence[str], logits: Array, cited: set[int], *, abstained: bool, table: Array,
                 columns: tuple[str, ...]) -> Attribution:
    probabilities = 1.0 / (1.0 + np.exp(-np.clip(logits, -_LARGEST, _LARGEST)))
    if abstained:
        probabilities[:] = 0.0
    found = dict(zip(names, probabilities.tolist(), strict=True))
    adds = table[:, columns.index("added words")] >= ADDS
    sure = {name for place, name in enumerate(names) if found[name] >= SURE and (adds[place] or place in cited)}
    return Attribution(
        probabilities=found,
        rewards={name: round(value, 4) for name, value in found.items() if name in sure},
        source=CITATION if any(names[place] in sure for place in cited) else CONTEXT_USE,
        cited=tuple(names[place] for place in sorted(cited)),
        abstained=abstained,
        features=columns,
        evidence=table,
    )


def _with_citations(logits: Array, cited: set[int]) -> Array:
    named = np.isin(np.arange(len(logits)), list(cited))
    least = np.maximum(logits, LEAST_CITED)
    rival = logits[~named].max() if not named.all() else -_LARGEST
    found: Array = np.where(named, least + CITED - np.maximum(0.0, rival - np.maximum(least, 0.0)), logits + NOT_CITED)
    return found


def _says_nothing(said: Sequence[str]) -> bool:
    return sum(len(part.split()) for part in said) < _ENOUGH_WORDS


def _first_places(ids: Sequence[str]) -> list[int]:
    return sorted({name: place for place, name in reversed(list(enumerate(ids)))}.values())


def _moved(labels: Mapping[str, int] | None, places: Sequence[int]) -> dict[str, int]:
    """Return the labels with positions among the first places."""
    at = {place: index for index, place in enumerate(places)}
    return {label: at[place] for label, place in (labels or {}).items() if place in at}
