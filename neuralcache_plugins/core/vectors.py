"""The border: whatever comes in leaves as unit float32 rows, or is refused by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from neuralcache_plugins.contracts import Matrix, Vector
from neuralcache_plugins.errors import DimensionMismatchError, InvalidInputError

UNIT = 1e-3
"""Rows whose squared length is this near to 1 count as unit rows: float16 vectors are no nearer."""


SHORT = 1e-15
"""The squares of what is shorter than this lose digits in float32."""


def unit_vector(values: Any, *, name: str, width: int | None = None) -> Vector:
    """Return ``values`` as one float32 row of length 1 that shares no memory with it. O(d).

    Raises ``InvalidInputError`` for anything that is not one finite, non-zero row of numbers and
    ``DimensionMismatchError`` when it is not ``width`` wide.
    """
    try:
        row = np.array(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"{name} must be a row of numbers, got {type(values).__name__}: {error}") from error
    if row.ndim != 1 or row.size == 0:
        raise InvalidInputError(f"{name} must be one row of numbers, got shape {row.shape}")
    if width is not None and row.size != width:
        raise DimensionMismatchError(name, got=row.size, expected=width)
    length = _length(row)
    if not SHORT < length < np.inf:
        largest = float(np.abs(row).max())
        if not 0.0 < largest < np.inf:
            raise InvalidInputError(f"{name} must be finite and not all zeros")
        row /= largest
        length = _length(row)
    row /= length
    return row


def _length(row: Vector) -> float:
    with np.errstate(over="ignore"):
        return float(np.sqrt(row.dot(row)))


def unit_rows(values: Any, *, count: int, width: int) -> tuple[Matrix, list[int]]:
    """Return ``values`` as (count, width) unit float32 rows, and the positions of the rows that cannot be used.

    A row that is missing (None), not finite, all zeros or of another width becomes zeros: such a document falls
    back to its other signals. Rows that are unit float32 already are returned as they came, to be read only (copying
    them would cost as much as all the cosines); anything else is copied. O(count * width).
    """
    rows = _matrix(values, count=count, width=width)
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is found below
        squares = np.vecdot(rows, rows)
    if count and np.maximum.reduce(squares) < 1.0 + UNIT and np.minimum.reduce(squares) > 1.0 - UNIT:
        return rows, []
    if isinstance(values, np.ndarray) and np.may_share_memory(rows, values):
        rows = rows.copy()
    with np.errstate(invalid="ignore"):
        lengths = np.sqrt(squares)
    if count and lengths.min() > SHORT and np.isfinite(lengths.sum()):
        rows /= lengths[:, None]
        return rows, []
    return rows, _make_unit(rows)


def _make_unit(rows: Matrix) -> list[int]:
    """Bring each row to length 1 in its place, however long or short it is; return those that became zeros."""
    largest = np.abs(rows).max(axis=1, initial=0.0)
    usable = np.isfinite(largest) & (largest > 0)
    rows[~usable] = 0.0
    largest[~usable] = 1.0
    rows /= largest[:, None]
    lengths = np.sqrt(np.vecdot(rows, rows))
    lengths[~usable] = 1.0
    rows /= lengths[:, None]
    return np.flatnonzero(~usable).tolist()


def _matrix(values: Any, *, count: int, width: int) -> Matrix:
    if len(values) != count:
        raise InvalidInputError(f"vectors must hold one row per text: got {len(values)} rows for {count} texts")
    if isinstance(values, np.ndarray) and values.shape == (count, width) and values.dtype.kind in "fiu":
        return np.asarray(values, dtype=np.float32)
    rows = np.zeros((count, width), dtype=np.float32)
    for position, value in enumerate(values):
        if value is None:
            continue
        try:
            row = np.asarray(value, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise InvalidInputError(f"vectors[{position}] must be a row of numbers: {error}") from error
        if row.shape == (width,):
            rows[position] = row
    return rows


def width_of(values: Sequence[Any] | np.ndarray[Any, Any]) -> int | None:
    """Return the width of the first row that is there, or None."""
    for value in values:
        if value is not None and not hasattr(value, "__len__"):
            raise InvalidInputError(f"vectors must hold one row of numbers per text, got {type(value).__name__}")
        if value is not None and len(value):
            return len(value)
    return None
