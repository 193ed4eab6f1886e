"""Every exception that this package raises on purpose.

::

    NeuralCacheError
    ├── InvalidInputError (ValueError)           something handed in cannot be used
    │   └── DimensionMismatchError               a vector has another width than expected
    ├── UnknownRankingError (LookupError)        feedback names a ranking that the store does not hold
    ├── UnknownDocumentError (LookupError)       feedback names a document that was not shown
    ├── UnknownHitError (LookupError)            a report names a hit that the store does not hold
    ├── ComputationError (RuntimeError)          another process failed to compute the answer that one waited for
    ├── EncoderError (RuntimeError)              the encoder raised, or returned something unusable
    ├── MissingExtraError (ImportError)          an optional package is not installed
    └── StoreError (RuntimeError)                the telemetry store could not do its work
        ├── StoreBusyError                       another writer held it for too long
        ├── StoreFullError                       no room left, or the place is read-only
        ├── StoreCorruptError                    the file is damaged; its message says how to go on
        ├── StoreClosedError                     used after ``close()``
        ├── ErasedMeanwhileError                 something was erased since the caller last looked
        └── SchemaVersionError                   written by a newer release than this one

A caller who knows only Python can catch ``ValueError``, ``LookupError``, ``ImportError`` and ``RuntimeError``.
"""

from __future__ import annotations


class NeuralCacheError(Exception):
    """Base of all exceptions of this package."""


class InvalidInputError(NeuralCacheError, ValueError):
    """An argument cannot be used; the message says what came and what was expected."""


class DimensionMismatchError(InvalidInputError):
    """A vector has another width than the vectors it must be compared with."""

    def __init__(self, name: str, *, got: int, expected: int) -> None:
        super().__init__(f"{name} has {got} dimensions, expected {expected}")
        self.got = got
        self.expected = expected


class UnknownRankingError(NeuralCacheError, LookupError):
    """No such ranking in this store and namespace."""


class UnknownDocumentError(NeuralCacheError, LookupError):
    """The document was not among those shown in this ranking."""


class UnknownHitError(NeuralCacheError, LookupError):
    """No such hit in this store and namespace."""


class ComputationError(NeuralCacheError, RuntimeError):
    """Another process was computing the same answer and failed; the message names its exception's type."""


class EncoderError(NeuralCacheError, RuntimeError):
    """The encoder failed or returned something that is not one vector per text."""


class MissingExtraError(NeuralCacheError, ImportError):
    """An optional package is missing; the message carries the pip command."""

    def __init__(self, package: str, *, extra: str) -> None:
        super().__init__(f"{package} is not installed; run: pip install 'neuralcache-plugins[{extra}]'", name=package)
        self.extra = extra


class StoreError(NeuralCacheError, RuntimeError):
    """The telemetry store could not do what was asked; nothing was half-written."""


class StoreBusyError(StoreError):
    """Another writer held the store for longer than the timeout."""


class StoreFullError(StoreError):
    """The disk is full, or the place cannot be written to."""


class StoreCorruptError(StoreError):
    """The store's file is damaged or is not a store at all."""


class StoreClosedError(StoreError):
    """The store was used after it was closed."""


class ErasedMeanwhileError(StoreError):
    """Something was erased since the epoch that the caller knows; nothing was stored."""


class SchemaVersionError(StoreError):
    """The store was written by a newer release."""
