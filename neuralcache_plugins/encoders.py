"""The local default encoder, any framework's encoder by duck typing, and the embedding cache around both."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from neuralcache_plugins.contracts import Encoder, Matrix, StoredVector, TelemetryStore, Vector
from neuralcache_plugins.core.vectors import unit_rows, width_of
from neuralcache_plugins.errors import (
    DimensionMismatchError,
    EncoderError,
    MissingExtraError,
    NeuralCacheError,
    StoreError,
)

MODEL_NAMES = ("model", "model_name", "model_id", "deployment", "repo_id")
"""Attributes under which encoders keep the name of their model."""


class LocalEncoder:
    """WordLlama: static 256-d word vectors whose weights lie in its wheel, so no download and no model server.

    Loaded on first use. An empty text has no direction and becomes NaN, which ranking treats as "no dense signal".
    """

    fingerprint = "wordllama:l2_supercat_256"

    def __init__(self) -> None:
        self._model: Any = None
        self._lock = threading.Lock()

    def embed_documents(self, texts: list[str]) -> Matrix:
        """Return (n, 256) unit rows. About 0.4 ms for a text of 120 words."""
        with np.errstate(invalid="ignore", divide="ignore"):
            rows = self._loaded().embed([_encodable(text) for text in texts], norm=True)
        return np.asarray(rows, dtype=np.float32)

    def embed_query(self, text: str) -> Vector:
        """Return one row of 256 numbers."""
        row: Vector = self.embed_documents([text])[0]
        return row

    def embed_queries(self, texts: list[str]) -> Matrix:
        """Return the rows of several questions at once."""
        return self.embed_documents(texts)

    def restart_after_fork(self) -> None:
        """Take a new lock in a forked child: another thread of the parent may have held the old one."""
        self._lock = threading.Lock()

    def _loaded(self) -> Any:
        with self._lock:
            if self._model is None:
                self._model = _load_wordllama()
        return self._model


def _load_wordllama() -> Any:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        import wordllama
    except ImportError as error:
        if error.name != "wordllama":
            raise
        raise MissingExtraError("wordllama", extra="local") from error
    finally:
        # importing it configures the root logger, which is the application's
        root.handlers[:] = handlers
        root.setLevel(level)
    # its own look-up misses the tokenizer in its wheel: it searches tokenizer/, the wheel has tokenizers/
    folder = Path(wordllama.__file__).parent
    return wordllama.WordLlama.load(cache_dir=folder, disable_download=True)


def _encodable(text: str) -> str:
    """Replace lone surrogates, which no tokenizer can turn into bytes."""
    return text.encode("utf-8", "replace").decode("utf-8")


class Encoded(NamedTuple):
    """Vectors of some documents: (n, d) unit rows, zeros where there is none; ``unusable`` lists those positions."""

    rows: Matrix
    unusable: list[int]


class EncoderCache:
    """An encoder that is asked only for what nobody has seen: RAM first, then the store, then the encoder.

    Rows are keyed by namespace, the encoder's fingerprint (class, model name, width), role and a keyed hash of the
    text. Nothing is written while ranking: new rows are handed to ``keep``.
    """

    def __init__(
        self,
        encoder: Encoder | None,
        *,
        store: TelemetryStore,
        hash_key: bytes,
        in_memory: int,
        on_disk: int,
        keep: Callable[[str, str, Sequence[StoredVector]], None],
    ) -> None:
        self.encoder: Encoder = LocalEncoder() if encoder is None else encoder
        self._store = store
        self._hash_key = hash_key
        self._in_memory = in_memory
        self._on_disk = on_disk
        self._keep = keep
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, str, str, str], Vector] = OrderedDict()
        self._model = _model_of(self.encoder)
        self.calls = 0
        self.hits = 0

    def fingerprint(self, width: int) -> str:
        """Return the identity of the encoder's vectors of this width."""
        return f"{self._model}:{width}"

    def question(self, text: str, *, namespace: str) -> Vector | None:
        """Return the unit vector of a question, None if it has no direction; ``EncoderError`` if the encoder fails."""
        known = self._recall(namespace, "query", "", text)
        if known is not None:
            return known
        return self._learn_question(namespace, text, self._call(lambda: self.encoder.embed_query(text)))

    async def aquestion(self, text: str, *, namespace: str, timeout_seconds: float | None = None) -> Vector | None:
        """Do what ``question`` does, awaiting the encoder's own coroutine where it has one."""
        known = self._recall(namespace, "query", "", text)
        if known is not None:
            return known
        return self._learn_question(namespace, text, await self._acall("embed_query", text, timeout_seconds))

    def questions(self, texts: Sequence[str], *, namespace: str) -> list[Vector | None]:
        """Return the unit vectors of several questions, in one call where the encoder has ``embed_queries``."""
        many = getattr(self.encoder, "embed_queries", None)
        if many is None:
            return [self.question(text, namespace=namespace) for text in texts]
        missing = [text for text in dict.fromkeys(texts) if self._recall(namespace, "query", "", text) is None]
        if missing:
            rows = self._call(lambda: list(many(missing)))
            if len(rows) != len(missing):
                raise EncoderError(f"{self._model} must return {len(missing)} rows for as many questions: {len(rows)}")
            for text, row in zip(missing, rows, strict=True):
                self._learn_question(namespace, text, row)
        return [self.question(text, namespace=namespace) for text in texts]

    def documents(
        self,
        texts: Sequence[str],
        *,
        ids: Sequence[str],
        width: int,
        namespace: str,
        wanted: Sequence[int] | None = None,
    ) -> Encoded:
        """Return the unit rows of ``texts`` (those at the positions ``wanted``; the rest stay zeros).

        At most one read of the store and one call of the encoder. ``EncoderError`` if the encoder fails,
        ``DimensionMismatchError`` if its rows are not as wide as the question.
        """
        rows, missing = self._gather(texts, ids, width, namespace, wanted)
        if missing:
            fresh = self._call(lambda: self.encoder.embed_documents(list(missing)))
            self._learn_documents(namespace, missing, fresh, rows)
        return self._finish(rows)

    async def adocuments(
        self,
        texts: Sequence[str],
        *,
        ids: Sequence[str],
        width: int,
        namespace: str,
        wanted: Sequence[int] | None = None,
        timeout_seconds: float | None = None,
    ) -> Encoded:
        """Do what ``documents`` does, awaiting the encoder's own coroutine where it has one."""
        rows, missing = await asyncio.to_thread(self._gather, texts, ids, width, namespace, wanted)
        if missing:
            fresh = await self._acall("embed_documents", list(missing), timeout_seconds)
            self._learn_documents(namespace, missing, fresh, rows)
        return self._finish(rows)

    def restart_after_fork(self) -> None:
        """Take new locks in a forked child: another thread of the parent may have held the old ones."""
        self._lock = threading.Lock()
        if isinstance(self.encoder, LocalEncoder):
            self.encoder.restart_after_fork()

    def forget(self) -> None:
        """Empty the RAM: what was erased in the store must not live on here."""
        with self._lock:
            self._known.clear()

    def _gather(
        self, texts: Sequence[str], ids: Sequence[str], width: int, namespace: str, wanted: Sequence[int] | None
    ) -> tuple[Matrix, dict[str, list[tuple[int, str]]]]:
        rows = np.zeros((len(texts), width), dtype=np.float32)
        fingerprint = self.fingerprint(width)
        missing: dict[str, list[tuple[int, str]]] = {}
        with self._lock:
            known, touch = self._known, self._known.move_to_end
            for position in range(len(texts)) if wanted is None else wanted:
                key = (namespace, "document", fingerprint, texts[position])
                row = known.get(key)
                if row is None:
                    # a blank text has no direction, and some encoders refuse it
                    if not texts[position].isspace() and texts[position]:
                        missing.setdefault(texts[position], []).append((position, ids[position]))
                else:
                    rows[position] = row
                    touch(key)
                    self.hits += 1
        if missing:
            self._fetch(namespace, fingerprint, missing, rows)
        return rows, missing

    def _fetch(self, namespace: str, fingerprint: str, missing: dict[str, list[tuple[int, str]]], rows: Matrix) -> None:
        """Fill in what the store knows; a store in trouble knows nothing."""
        keys = {self._key("document", text): text for text in missing}
        try:
            stored = self._store.get_vectors(namespace, fingerprint, list(keys))
        except StoreError:
            return
        for key, half in stored.items():
            if half.shape != (rows.shape[1],):
                continue
            text = keys[key]
            row = half.astype(np.float32)
            places = missing.pop(text)
            self.hits += len(places)
            for position, _ in places:
                rows[position] = row
            self._remember(namespace, "document", fingerprint, text, row)

    def _learn_documents(
        self, namespace: str, missing: dict[str, list[tuple[int, str]]], fresh: Any, rows: Matrix
    ) -> None:
        width = rows.shape[1]
        try:
            actual = width_of(fresh)
            if actual not in (None, width):
                raise DimensionMismatchError("query_vector", got=width, expected=actual)
            unit, unusable = unit_rows(fresh, count=len(missing), width=width)
        except DimensionMismatchError:
            raise
        except (NeuralCacheError, TypeError) as error:
            raise EncoderError(f"{self._model} must return one row of {width} numbers per text: {error}") from error
        fingerprint, bad, new = self.fingerprint(width), set(unusable), []
        for index, (text, places) in enumerate(missing.items()):
            if index in bad:
                continue
            half = unit[index].astype(np.float16)
            row = half.astype(np.float32)
            for position, _ in places:
                rows[position] = row
            self._remember(namespace, "document", fingerprint, text, row)
            new.append(StoredVector(self._key("document", text), half, places[0][1]))
        if new and self._on_disk:
            self._keep(namespace, fingerprint, new)

    def _finish(self, rows: Matrix) -> Encoded:
        lengths = np.einsum("ij,ij->i", rows, rows)
        return Encoded(rows, np.flatnonzero(lengths == 0).tolist())

    def _learn_question(self, namespace: str, text: str, values: Any) -> Vector | None:
        try:
            rows, unusable = unit_rows([values], count=1, width=len(values))
        except (NeuralCacheError, TypeError) as error:
            raise EncoderError(f"{self._model} must return one row of numbers for a question: {error}") from error
        if unusable:
            return None
        row: Vector = rows[0]
        self._remember(namespace, "query", "", text, row)
        return row

    def _call(self, encode: Callable[[], Any]) -> Any:
        self.calls += 1
        try:
            return encode()
        except NeuralCacheError:
            raise
        except Exception as error:  # foreign code: whatever it raises must not end a retrieval
            raise EncoderError(f"{self._model} failed: {error!r}") from error

    async def _acall(self, name: str, argument: Any, timeout_seconds: float | None) -> Any:
        native = getattr(self.encoder, f"a{name}", None)
        self.calls += 1
        try:
            work = asyncio.to_thread(getattr(self.encoder, name), argument) if native is None else native(argument)
            return await asyncio.wait_for(work, timeout_seconds)
        except NeuralCacheError:
            raise
        except Exception as error:  # as in _call; cancellation is no Exception and passes
            raise EncoderError(f"{self._model} failed: {error!r}") from error

    def _recall(self, namespace: str, role: str, fingerprint: str, text: str) -> Vector | None:
        key = (namespace, role, fingerprint, text)
        with self._lock:
            row = self._known.get(key)
            if row is not None:
                self._known.move_to_end(key)
            return row

    def _remember(self, namespace: str, role: str, fingerprint: str, text: str, row: Vector) -> None:
        with self._lock:
            self._known[namespace, role, fingerprint, text] = row
            while len(self._known) > self._in_memory:
                self._known.popitem(last=False)

    def _key(self, role: str, text: str) -> str:
        return hashlib.blake2b(
            f"{role}\0{text}".encode("utf-8", "surrogatepass"), key=self._hash_key, digest_size=16
        ).hexdigest()


def _model_of(encoder: Encoder) -> str:
    own = getattr(encoder, "fingerprint", None)
    if isinstance(own, str):
        return own
    kind = type(encoder)
    names = (getattr(encoder, name, None) for name in MODEL_NAMES)
    model = next((name for name in names if isinstance(name, str) and name), "")
    return f"{kind.__module__}.{kind.__qualname__}:{model}"
