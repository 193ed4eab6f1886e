"""A log of questions and answers, read from files or taken from a program, and checked line by line."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, TypeAlias

from neuralcache_plugins.errors import InvalidInputError
from neuralcache_plugins.semantic_cache import values
from neuralcache_plugins.semantic_cache.keys import Asked, Keys, Scope
from neuralcache_plugins.semantic_cache.values import Payload

Record: TypeAlias = Mapping[str, Any] | tuple[str, Any]
"""A mapping with "question" and "answer", perhaps "scope" and "documents"; or a pair (question, answer)."""


@dataclass(frozen=True, slots=True)
class Line:
    """One checked line. ``has_scope`` is False where neither the line nor the caller named one."""

    asked: Asked
    answer: Any
    payload: Payload
    has_scope: bool


def checked_lines(records: Iterable[Record], *, keys: Keys, scope: Scope | None) -> list[Line]:
    """Return the lines; ``InvalidInputError`` names the first that cannot be used."""
    if isinstance(records, str | bytes | Mapping):
        raise InvalidInputError(f"records must be mappings or (question, answer) pairs, got a {type(records).__name__}")
    lines = []
    for number, record in enumerate(records, 1):
        try:
            lines.append(_line(record, keys, scope))
        except InvalidInputError as error:
            raise InvalidInputError(f"record {number}: {error}") from error
    return lines


def read_records(path: str | Path, *, question: str = "question", answer: str = "answer") -> Iterator[dict[str, Any]]:
    """Yield the records of a log in JSON Lines or CSV with a header line, by its ending; ``.gz`` is fine.

    ``question`` and ``answer`` name the fields; ``scope`` and ``documents`` are taken where they are. In CSV a scope
    that is a JSON object is read as one, and documents are JSON. Other fields are left alone. ``InvalidInputError`` for
    a file that cannot be read so.
    """
    place = Path(path)
    endings = [ending.lower() for ending in place.suffixes if ending.lower() != ".gz"]
    reader = {".jsonl": _json_lines, ".ndjson": _json_lines, ".csv": _csv}.get(endings[-1] if endings else "")
    if reader is None:
        raise InvalidInputError(f"a log must end in .jsonl, .ndjson or .csv, .gz is fine: {place}")
    try:
        with _opened(place) as file:
            for number, found in reader(file):
                yield _record(found, question, answer, f"{place}, line {number}")
    except (OSError, UnicodeDecodeError, csv.Error, EOFError) as error:
        raise InvalidInputError(f"{place} cannot be read: {error}") from error


def _line(record: Any, keys: Keys, scope: Scope | None) -> Line:
    if isinstance(record, tuple) and len(record) == 2:
        record = {"question": record[0], "answer": record[1]}
    if not isinstance(record, Mapping) or not {"question", "answer"} <= record.keys():
        raise InvalidInputError(f"must be a mapping with question and answer, or a pair of them, got {_kind(record)}")
    own = record.get("scope")
    place = scope if own is None else own
    asked = keys.asked(record["question"], "" if place is None else place, record.get("documents") or ())
    return Line(asked, record["answer"], values.encode(record["answer"]), place is not None)


def _kind(record: Any) -> str:
    return f"keys {sorted(map(str, record))}" if isinstance(record, Mapping) else type(record).__name__


def _opened(path: Path) -> TextIO:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _json_lines(file: TextIO) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except ValueError as error:
            raise InvalidInputError(f"{file.name}, line {number} is no JSON: {error}") from error
        if not isinstance(found, dict):
            raise InvalidInputError(f"{file.name}, line {number} is no JSON object")
        yield number, found


def _csv(file: TextIO) -> Iterator[tuple[int, dict[str, Any]]]:
    rows = csv.DictReader(file)
    for found in rows:
        if None in found:  # of a comma without quotes half of an answer would be taken for all of it
            raise InvalidInputError(f"{file.name}, line {rows.line_num} has more fields than the header")
        yield rows.line_num, {name: text for name, text in found.items() if text}


def _record(found: Mapping[str, Any], question: str, answer: str, place: str) -> dict[str, Any]:
    missing = [name for name in (question, answer) if name not in found]
    if missing:
        raise InvalidInputError(f"{place} has no {' and no '.join(map(repr, missing))}; it has: "
                                f"{', '.join(map(repr, found)) or 'nothing'}")
    record = {"question": found[question], "answer": found[answer]}
    for name in ("scope", "documents"):
        if found.get(name) is not None:
            record[name] = _parsed(found[name], name, place)
    return record


def _parsed(value: Any, name: str, place: str) -> Any:
    """Return what a text holds where the field wants more than a text."""
    if not isinstance(value, str) or (name == "scope" and not value.lstrip().startswith("{")):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise InvalidInputError(f"{place}: {name} is no JSON: {error}") from error
