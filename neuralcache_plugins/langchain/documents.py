"""Between LangChain's documents and the core's texts, ids and positions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, TypeAlias

from langchain_core.documents import Document

IdKey: TypeAlias = str | Callable[[Document], str | None] | None
"""A metadata key, or a function of the document; None: ``Document.id``."""


def document_id(document: Document, id_key: IdKey) -> str | None:
    """Return the document's id: by ``id_key``, else ``Document.id``, else None (then the core hashes its text)."""
    if id_key is not None:
        found = id_key(document) if callable(id_key) else document.metadata.get(id_key)
        if found is not None and found != "":
            return str(found)
    return document.id or None


def document_ids(documents: Sequence[Document], id_key: IdKey) -> list[str | None]:
    """Return ``document_id`` of each document."""
    if id_key is None:
        return [document.id or None for document in documents]
    return [document_id(document, id_key) for document in documents]


def document_vectors(documents: Sequence[Document]) -> list[Any] | None:
    """Return the vectors that the documents carry, as LangChain's embedding filters leave them in ``state``."""
    vectors = [_vector(document) for document in documents]
    return vectors if any(vector is not None for vector in vectors) else None


def prior_scores(documents: Sequence[Document], keys: Sequence[str]) -> list[float | None] | None:
    """Return the retriever's score of each document; None when no document has one (then its order counts)."""
    described = [document.metadata for document in documents]
    scores: list[float | None] = [None] * len(described)
    for key in reversed(keys):  # so that the first one has the last word
        for place, metadata in enumerate(described):
            if key in metadata and (score := _known(metadata[key])) is not None:
                scores[place] = score
    return None if scores.count(None) == len(scores) else scores


def prior_score(document: Document, keys: Sequence[str]) -> float | None:
    """Return the first finite number in the metadata under one of the keys."""
    for key in keys:
        value = document.metadata.get(key)
        if value is not None and (score := _known(value)) is not None:
            return score
    return None


def chosen_copy(document: Document, resolved_id: str, additions: dict[str, Any]) -> Document:
    """Return a copy with more metadata and, where it had none, an id.

    The copy keeps the document's class and state and shares nested metadata values; the original is untouched.
    """
    update: dict[str, Any] = {"metadata": {**document.metadata, **additions}}
    if not document.id:
        update["id"] = resolved_id
    return document.model_copy(update=update)


def _vector(document: Document) -> Any:
    state = getattr(document, "state", None)
    return state.get("embedded_doc") if isinstance(state, dict) else None


def _known(value: Any) -> float | None:
    if type(value) is not float:  # asking the abstract class takes longer than all the rest
        if not isinstance(value, Real) or isinstance(value, bool):
            return None
        try:
            value = float(value)
        except OverflowError:  # an int may be larger than any float
            return math.inf if value > 0 else -math.inf
    return None if math.isnan(value) else value
