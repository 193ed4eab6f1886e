"""Judged sets: documents, questions, and which documents are right for which question."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

from neuralcache_plugins.errors import InvalidInputError

Qrels: TypeAlias = Mapping[str, Mapping[str, int]]
"""Question id -> document id -> grade; what is missing is unjudged and counts as 0."""


@dataclass(frozen=True, slots=True, eq=False)
class JudgedSet:
    """Documents and questions with judgements. ``texts[i]`` belongs to ``ids[i]``, ``queries[j]`` to ``query_ids[j]``.

    Only questions with a judgement above 0 are kept: nothing can be measured on the others.
    """

    name: str
    ids: tuple[str, ...]
    texts: tuple[str, ...]
    query_ids: tuple[str, ...]
    queries: tuple[str, ...]
    qrels: Qrels

    def __post_init__(self) -> None:
        for kind, ids, texts in (("document", self.ids, self.texts), ("question", self.query_ids, self.queries)):
            if len(ids) != len(texts):
                raise InvalidInputError(f"{self.name}: {len(ids)} {kind} ids for {len(texts)} texts")
            if len(set(ids)) != len(ids):
                raise InvalidInputError(f"{self.name}: {kind} ids must differ, {len(ids) - len(set(ids))} repeat")
        kept = [at for at, name in enumerate(self.query_ids) if any(g > 0 for g in self.qrels.get(name, {}).values())]
        if not kept:
            raise InvalidInputError(f"{self.name}: no question has a judgement above 0")
        object.__setattr__(self, "qrels", {self.query_ids[at]: dict(self.qrels[self.query_ids[at]]) for at in kept})
        object.__setattr__(self, "queries", tuple(self.queries[at] for at in kept))
        object.__setattr__(self, "query_ids", tuple(self.query_ids[at] for at in kept))

    def __len__(self) -> int:
        return len(self.query_ids)

    @classmethod
    def load(
        cls, path: str | Path, *, qrels: str | Path | None = None, split: str = "test", query_field: str = "text"
    ) -> JudgedSet:
        """Read a folder: ``corpus.jsonl``, ``queries.jsonl``, and ``qrels/<split>.tsv`` (BEIR) or ``qrels.tsv``.

        Any of them may end in ``.gz``. Lines of JSON have ``_id`` or ``id``, ``text`` and perhaps ``title``, which is
        put before a text that does not begin with it. Judgements are (question, document, grade) with or without a
        header, or TREC's four columns. ``query_field`` takes the questions from another field; lines without it are
        left out. Raises ``InvalidInputError`` with file and line.
        """
        folder = Path(path)
        judged = Path(qrels) if qrels is not None else _found(folder, f"qrels/{split}.tsv", "qrels.tsv")
        documents = [(name, passage(row)) for name, row in _rows(_found(folder, "corpus.jsonl"))]
        lines = _rows(_found(folder, "queries.jsonl"))
        asked = [(name, str(row[query_field])) for name, row in lines if row.get(query_field)]
        return cls(
            name=folder.resolve().name,
            ids=tuple(name for name, _ in documents),
            texts=tuple(text for _, text in documents),
            query_ids=tuple(name for name, _ in asked),
            queries=tuple(text for _, text in asked),
            qrels=read_qrels(judged),
        )


def passage(row: Mapping[str, Any]) -> str:
    """Return a document's text, with its title in front unless it begins with it."""
    title, text = str(row.get("title") or ""), str(row.get("text") or "")
    return text if not title or text.startswith(title) else f"{title}\n{text}"


def read_qrels(path: str | Path) -> dict[str, dict[str, int]]:
    """Read judgements: question, document, grade with or without a header, or TREC's question, 0, document, grade."""
    qrels: dict[str, dict[str, int]] = {}
    for number, line in enumerate(lines_of(Path(path)), start=1):
        cells = line.split("\t") if "\t" in line else line.split()
        if not line.strip():
            continue
        if len(cells) not in (3, 4):
            raise InvalidInputError(f"{path}:{number} must have 3 or 4 columns, got {len(cells)}")
        try:
            grade = int(float(cells[-1]))
        except ValueError as error:
            if number == 1:
                continue  # the header
            raise InvalidInputError(f"{path}:{number} ends in {cells[-1]!r}, expected a grade") from error
        qrels.setdefault(cells[0], {})[cells[-2]] = grade
    return qrels


def lines_of(path: Path) -> Iterator[str]:
    """Yield the lines of a text file, plain or gzip."""
    try:
        with opened(path) as file:
            for line in file:
                yield line.rstrip("\r\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path} cannot be read: {error}") from error


def opened(path: Path) -> IO[str]:
    """Open a text file for reading, plain or gzip."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _rows(path: Path) -> Iterable[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(lines_of(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InvalidInputError(f"{path}:{number} is not JSON: {error}") from error
        name = None if not isinstance(row, dict) else row.get("_id", row.get("id"))
        if name is None:
            raise InvalidInputError(f"{path}:{number} must be an object with _id or id")
        yield str(name), row


def _found(folder: Path, *names: str) -> Path:
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    wanted = " or ".join(f"{name}[.gz]" for name in names)
    raise InvalidInputError(f"{folder} has no {wanted}; a judged set needs corpus.jsonl, queries.jsonl and qrels")
