"""What names an answer: the canonical question within a scope, and the documents that it came from."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from neuralcache_plugins.contracts import AnswerKey, DocumentVersion
from neuralcache_plugins.errors import InvalidInputError

Scope: TypeAlias = str | Mapping[str, Any]
"""What must be equal before an answer may be considered: a text, or JSON-able facts by name."""

Documents: TypeAlias = Mapping[str, str] | Iterable[DocumentVersion]
"""Ids with content hashes, as a mapping or as pairs."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One question as the cache looks it up. ``documents`` are sorted; empty means that the caller knows none."""

    question: str
    key: AnswerKey
    documents: tuple[DocumentVersion, ...]

    @property
    def scope(self) -> str:
        """The scope's key."""
        return self.key[0]


class Keys:
    """Makes keyed hashes: not to be reversed, nor compared with another store's, without this store's key."""

    def __init__(self, hash_key: bytes, namespace: str) -> None:
        self._hash_key = hash_key
        self._namespace = namespace

    def asked(self, question: str, scope: Scope, documents: Documents) -> Asked:
        """Return what to look up; ``InvalidInputError`` for what cannot be used."""
        text = canonical(question)
        place = self.scope(scope)
        return Asked(text, (place, self._key("question", f"{place}\0{text}")), checked_documents(documents))

    def scope(self, scope: Scope) -> str:
        """Return the key of a scope. A text and a mapping are never the same scope."""
        if isinstance(scope, str):
            return self._key("scope", f"text\0{scope}")
        if not isinstance(scope, Mapping):
            raise InvalidInputError(f"scope must be a str or a mapping, got {type(scope).__name__}")
        return self._key("scope", f"json\0{_canonical_json(scope)}")

    def flight(self, asked: Asked) -> str:
        """Return the name under which the computation of an answer is known to other processes."""
        return self._key("flight", json.dumps([*asked.key, asked.documents]))

    def _key(self, role: str, text: str) -> str:
        data = f"{role}\0{self._namespace}\0{text}".encode("utf-8", "surrogatepass")
        return hashlib.blake2b(data, key=self._hash_key, digest_size=16).hexdigest()


def canonical(question: str) -> str:
    """Return the text with composed characters and without blanks that mean nothing.

    Inside a text of several lines blanks may mean something: it may be code.
    """
    if not isinstance(question, str):
        raise InvalidInputError(f"question must be a str, got {type(question).__name__}")
    text = unicodedata.normalize("NFC", question).strip()
    return text if "\n" in text else " ".join(text.split())


def checked_documents(documents: Documents) -> tuple[DocumentVersion, ...]:
    """Return the pairs sorted, each once; ``InvalidInputError`` for other things and for two hashes of one id."""
    if isinstance(documents, str):
        raise InvalidInputError("documents must be (id, content hash) pairs or a mapping, got a str")
    pairs = sorted({_pair(each) for each in (documents.items() if isinstance(documents, Mapping) else documents)})
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        doubled = next(name for name in names if names.count(name) > 1)
        raise InvalidInputError(f"document {doubled!r} is given with two content hashes")
    return tuple(pairs)


def is_made_from(made: Iterable[DocumentVersion], asked: tuple[DocumentVersion, ...]) -> bool:
    """Return whether a similar question's answer may serve who names these documents.

    Not if it was made from another version of one of them; nor, if any are named, if nobody knows what it was made
    from: no change could ever reach it.
    """
    if not asked:
        return True
    known, found = dict(asked), tuple(made)
    return bool(found) and all(known.get(name, version) == version for name, version in found)


def checked_namespace(namespace: Any) -> str:
    """Return the namespace; ``InvalidInputError`` unless it is a text that is not empty."""
    if not isinstance(namespace, str) or not namespace:
        raise InvalidInputError(f"namespace must be a non-empty str, got {namespace!r}")
    return namespace


def _pair(each: Any) -> DocumentVersion:
    if not isinstance(each, tuple | list) or len(each) != 2 or not all(isinstance(part, str) for part in each):
        raise InvalidInputError(f"a document must be an (id, content hash) pair of texts, got {each!r}")
    return each[0], each[1]


def _canonical_json(scope: Mapping[str, Any]) -> str:
    # keys that are no texts would be turned into texts: 1 and "1" must not become one scope
    text = _dumps(scope)
    if not _is_plain(scope) and json.loads(text) != scope:
        raise InvalidInputError("scope must hold JSON values only (texts, numbers, lists, and mappings keyed by texts)")
    return text


def _is_plain(value: Any) -> bool:
    """Return whether a value is surely what its JSON says; True for nearly every scope, and quicker than to read it."""
    kind = type(value)
    if kind is dict:
        return all(type(key) is str and _is_plain(each) for key, each in value.items())
    return kind in _PLAIN or (kind is list and all(map(_is_plain, value)))


_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)
_PLAIN = frozenset({str, int, float, bool, type(None)})


def _dumps(scope: Mapping[str, Any]) -> str:
    try:
        return _JSON.encode(dict(scope))
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"scope must hold JSON values only: {error}") from error
