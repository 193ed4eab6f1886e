"""What arrays are called: numpy throughout; vectors are float32 and of unit length unless a name says otherwise."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Vector: TypeAlias = npt.NDArray[np.float32]
"""One float32 row, shape (d,), or one number per candidate, shape (n,)."""

HalfVector: TypeAlias = npt.NDArray[np.float16]
"""The same in the precision in which stores keep vectors."""

Matrix: TypeAlias = npt.NDArray[np.float32]
"""float32 rows, shape (n, d)."""

Array: TypeAlias = npt.NDArray[np.float64]
"""float64 numbers: probabilities and their logarithms, where float32 would lose the tail."""

Positions: TypeAlias = npt.NDArray[np.int64]
"""Indices into the list that the caller passed."""
