"""Runs: what a retriever or reranker found for each question, in the formats that other tools read and write."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from neuralcache_plugins.errors import InvalidInputError
from neuralcache_plugins.evaluation.judged import lines_of


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """Question id -> document id -> score, higher is better. Equal scores keep the order of the mapping."""

    name: str
    scores: Mapping[str, Mapping[str, float]]

    def best(self, query_id: str, count: int) -> list[tuple[str, float]]:
        """Return the ``count`` best (document id, score) of a question, best first; none for an unknown question."""
        found = self.scores.get(query_id, {})
        return sorted(found.items(), key=lambda pair: -pair[1])[:count]

    @classmethod
    def load(cls, path: str | Path) -> Run:
        """Read a run: ranx JSON (``.json``, ``.json.gz``), or else TREC's six columns; either may be gzipped."""
        place = Path(path)
        if place.name.removesuffix(".gz").endswith(".json"):
            return cls(_stem(place), _from_json(place))
        return cls(_stem(place), _from_trec(place))

    def save(self, path: str | Path) -> None:
        """Write the run: ranx JSON for ``.json`` and ``.json.gz``, else TREC's six columns (ranks from 1)."""
        place = Path(path)
        if place.name.removesuffix(".gz").endswith(".json"):
            text = json.dumps({name: dict(found) for name, found in self.scores.items()})
        else:
            tag = "".join(self.name.split()) or "run"
            text = "".join(
                f"{query_id} Q0 {document} {rank} {score!r} {tag}\n"
                for query_id, found in self.scores.items()
                for rank, (document, score) in enumerate(self.best(query_id, len(found)), start=1)
            )
        data = text.encode("utf-8")
        # without a time in the header, equal runs are equal files
        place.write_bytes(gzip.compress(data, mtime=0) if place.suffix == ".gz" else data)


def _from_json(path: Path) -> dict[str, dict[str, float]]:
    try:
        content = json.loads("\n".join(lines_of(path)))
        return {str(name): {str(doc): float(score) for doc, score in found.items()} for name, found in content.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidInputError(f"{path} is not a run: expected {{question: {{document: score}}}}; {error}") from error


def _from_trec(path: Path) -> dict[str, dict[str, float]]:
    rows: dict[str, list[tuple[int, str, float]]] = {}
    for number, line in enumerate(lines_of(path), start=1):
        cells = line.split()
        if not cells:
            continue
        if len(cells) != 6:
            raise InvalidInputError(f"{path}:{number} must have the 6 columns of a TREC run, got {len(cells)}")
        try:
            rows.setdefault(cells[0], []).append((int(cells[3]), cells[2], float(cells[4])))
        except ValueError as error:
            raise InvalidInputError(f"{path}:{number} has no rank or score: {error}") from error
    return {
        name: {document: score for _, document, score in sorted(found, key=lambda row: row[0])}
        for name, found in rows.items()
    }


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").rsplit(".", 1)[0]
