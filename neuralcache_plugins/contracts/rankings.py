"""What the reranker answers: rankings that explain themselves."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import numpy as np

from neuralcache_plugins.contracts.arrays import Array, Positions, Vector
from neuralcache_plugins.contracts.telemetry import RankingServed

SIGNALS = ("prior", "dense", "lexical", "narrative", "pheromone", "association")
"""The names of the signals, in the order in which tables show them."""


@dataclass(frozen=True, slots=True)
class Remembered:
    """A question of the past that spoke for a document (``helped``), or against it.

    ``ranking_id`` is the ranking that was shown for it, ``text`` what was asked (None where texts are not stored),
    ``similarity`` the cosine to the question now, ``reward`` what the document, or the one whose place it has taken
    since, got for it, in [-1, 1] (0: nobody said anything, which counts a little against what was shown where feedback
    is usual, and where it is rare a little for what memory was sure of). ``share`` in (0, 1] is its part of all that
    remembered questions said for the document, or against it.
    """

    ranking_id: str
    text: str | None
    similarity: float
    reward: float
    share: float
    helped: bool


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """What made a ranking, one entry per returned document.

    ``shares[signal]`` (k,) is what the signal added to the document's log-odds, over a candidate that is average in
    every signal; summed over the signals (``total``) it says how far the document was moved, and but for chance and
    diversity the order is that of the sums. To the names in ``SIGNALS`` come ``scorer``, ``rejection`` (questions
    that the document did not help) and ``linear`` (a linear model per document). ``learned`` in [0, 1] says how much
    the learned order counted for this question; its signals are shown with what that left of them. ``questions`` are
    the weightiest behind ``association`` and ``rejection``. ``notes`` are sentences on what else there is to know.
    """

    shares: Mapping[str, Array]
    candidates: int
    learned: float
    questions: tuple[tuple[Remembered, ...], ...]
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> Array:
        """The sum of all shares, (k,)."""
        total: Array = np.sum(list(self.shares.values()), axis=0)
        return total


class Explainer(Protocol):
    """Explains one ranking, later and at leisure."""

    def explanation(self, ranking: Ranking, /) -> Explanation:
        """Return why the ranking is as it is. Never raises because a store fails or the state has moved on."""


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """One answer of the reranker.

    ``positions[i]`` is the index, in the list that the caller passed, of the document at rank ``i``. ``scores``
    are in [0, 1] and never rise along the order. ``signals`` hold one number per returned document and signal:
    those in ``SIGNALS``, ``scorer`` where there was one, and ``uncommon`` (see ``core.fusion``) where learning counted.
    ``propensities[i]`` is the probability with which exploration put that document at that rank (1.0 without it).
    ``degraded`` names what was missing ("encoder", "store", "scorer"), empty when all went well. ``epoch`` is the
    store's when it was served: erasures since then may have taken it. ``explainer`` stays behind when a ranking is
    pickled.
    """

    ranking_id: str
    namespace: str
    positions: Positions
    ids: tuple[str, ...]
    scores: tuple[float, ...]
    signals: Mapping[str, Vector]
    propensities: tuple[float, ...]
    trust: float = 0.0
    degraded: tuple[str, ...] = ()
    served: RankingServed | None = field(default=None, repr=False)
    epoch: int = field(default=0, repr=False)
    explainer: Explainer | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    def first(self, count: int) -> Ranking:
        """Return the first ``count`` ranks alone, for a shorter look; it is not another answer."""
        return replace(
            self, positions=self.positions[:count], ids=self.ids[:count], scores=self.scores[:count],
            propensities=self.propensities[:count],
            signals={name: values[:count] for name, values in self.signals.items()},
        )

    def explanation(self) -> Explanation | None:
        """Return each signal's share and the remembered questions; None for a ranking from another process.

        Worked out when called, in about a millisecond for ten documents, from what was known when it was ranked; only
        the texts and ids of remembered questions are looked up in the store, so what was erased since is not named.
        """
        return None if self.explainer is None or not self.ids else self.explainer.explanation(self)

    def explain(self) -> str:
        """Return ``explanation`` as plain text: a table with one line per returned document, and what moved it.

        A ranking from another process shows the values of its signals instead.
        """
        table = _Table.of(self)
        widths = [max(len(line[column]) for line in [table.header, *table.rows]) for column in range(len(table.header))]
        lines = [self._caption()]
        for cells, remarks in zip([table.header, *table.rows], [(), *table.remarks], strict=True):
            lines.append("  ".join(map(_placed, cells, widths, range(len(cells)))))
            lines += [f"      {remark}" for remark in remarks]
        return "\n".join([*lines, *table.notes])

    def _repr_html_(self) -> str:
        table = _Table.of(self)
        head = "".join(f"<th>{html.escape(name)}</th>" for name in table.header)
        aside = f'<tr><td></td><td colspan="{len(table.header) - 1}" style="text-align: left">'
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            + "".join(f"{aside}{html.escape(remark)}</td></tr>" for remark in remarks)
            for row, remarks in zip(table.rows, table.remarks, strict=True)
        )
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in table.notes)
        caption = html.escape(self._caption())
        return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{notes}"

    def _caption(self) -> str:
        degraded = f", degraded: {', '.join(self.degraded)}" if self.degraded else ""
        return f"ranking {self.ranking_id} in {self.namespace!r}: trust in learning {self.trust:.2f}{degraded}"


class _Table(NamedTuple):
    """A ranking for people: cells, remarks under each row, notes under all."""

    header: list[str]
    rows: list[list[str]]
    remarks: list[tuple[str, ...]]
    notes: list[str]

    @classmethod
    def of(cls, ranking: Ranking) -> _Table:
        explanation = ranking.explanation()
        return cls._of_signals(ranking) if explanation is None else cls._of_shares(ranking, explanation)

    @classmethod
    def _of_signals(cls, ranking: Ranking) -> _Table:
        names = [name for name in (*SIGNALS, "scorer") if name in ranking.signals]
        rows = [
            [*_place(ranking, rank), *(_number(float(ranking.signals[name][rank]), 3) for name in names)]
            for rank in range(len(ranking))
        ]
        notes = ["values of the signals, not their shares: those are known only where the ranking was made"]
        return cls([*_PLACE, *names], rows, [()] * len(rows), notes if rows else [])

    @classmethod
    def _of_shares(cls, ranking: Ranking, explanation: Explanation) -> _Table:
        shares, total = explanation.shares, explanation.total
        order = [name for name in (*SIGNALS, "scorer") if name in shares]
        order += [name for name in shares if name not in order]
        spoke = [name for name in order if np.abs(shares[name]).max() >= _SILENT]
        silent = [name for name in order if name not in spoke]
        rows = [
            [*_place(ranking, rank), _number(float(total[rank]), 2),
             *(_number(float(shares[name][rank]), 2) for name in spoke)]
            for rank in range(len(ranking))
        ]
        of = f"of {explanation.candidates} candidates"
        notes = [f"sum: log-odds over a document average in every signal ({of}), then shares in it"]
        notes += [f"less than {_SILENT}: {', '.join(silent)}"] if silent else []
        notes += [f"note: {note}" for note in explanation.notes]
        return cls([*_PLACE, "sum", *spoke], rows, [tuple(map(_remark, one)) for one in explanation.questions], notes)


_PLACE = ("rank", "id", "was", "score")
_SILENT = 0.02
_TEXT_LENGTH = 60


def _place(ranking: Ranking, rank: int) -> list[str]:
    return [str(rank + 1), ranking.ids[rank], str(int(ranking.positions[rank]) + 1), f"{ranking.scores[rank]:.3f}"]


def _placed(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if _PLACE[column : column + 1] in (("rank",), ("id",)) else cell.rjust(width)


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{round(value, digits) or 0.0:+.{digits}f}"


def _remark(one: Remembered) -> str:
    side = "for" if one.helped else "against"
    why = "nobody answered" if one.reward == 0 else f"reward {one.reward:+g}"
    text = "" if one.text is None else f' "{_short(one.text)}"'
    return f"{one.share:.0%} {side} it:{text} cosine {one.similarity:.2f}, {why}, ranking {one.ranking_id}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _TEXT_LENGTH else f"{line[: _TEXT_LENGTH - 3]}..."
