"""What a calibration tells: how each rule did on the log, and what is certified now."""

from __future__ import annotations

import html
from dataclasses import asdict, dataclass
from typing import Any

from neuralcache_plugins.semantic_cache.certificate import Certificate
from neuralcache_plugins.semantic_cache.proof import Proof
from neuralcache_plugins.semantic_cache.results import html_facts


@dataclass(frozen=True, slots=True)
class CalibrationReport:
    """What was learned and proved from a log; ``str()`` of it is for people, notebooks show tables.

    ``questions`` are the distinct ones of the log, beside ``repeats`` and those ``unusable`` because the encoder gives
    them no direction. ``known`` of them came before or up to the last line that an earlier calibration had used: these
    only filled the cache. ``judged_pairs`` tested and taught, ``stored`` are the answers put into the cache.
    ``certificate`` is the cache's own afterwards.
    """

    namespace: str
    encoder: str
    judge: str
    questions: int
    repeats: int
    unusable: int
    known: int
    judged_pairs: int
    proof: Proof
    stored: int
    certificate: Certificate

    @property
    def certified(self) -> bool:
        """Return whether similar questions are answered from now on."""
        return self.certificate.live

    def facts(self) -> list[tuple[str, str]]:
        """Return names and words, for whoever shows them."""
        aside = [f"{number:,} {what}" for number, what in (
            (self.repeats, "repeats"), (self.unusable, "without a direction"), (self.known, "known, which only fill"),
        ) if number]
        return [
            ("questions", f"{self.questions:,}" + (f" ({', '.join(aside)})" if aside else "")),
            ("pairs judged", f"{self.judged_pairs:,}, each a test before it taught; judge: {self.judge}"),
            ("verdict", self.verdict()),
            ("answers put", f"{self.stored:,} into namespace {self.namespace!r}"),
            ("certificate", str(self.certificate)),
        ]

    def verdict(self) -> str:
        """Return in one sentence what the log proved."""
        proof, limit = self.proof, f"{100 * self.certificate.max_error:.4g} %"
        if not self.judged_pairs:
            return "nothing new to test: every line was part of an earlier calibration, or has no similar one before it"
        if proof.passed:
            hits, wrong, _ = proof.rules[proof.passed - 1]
            return (f"rule {proof.passed} of {len(proof.rules)} is certified: as the lines before each had made it, it "
                    f"would have answered {hits:,}, {wrong:,} of them wrong; a rule that errs in {limit} passes with "
                    f"probability {proof.alpha:.2g} at most")
        if proof.changed is not None:
            return (f"nothing is certified by it: at pair {proof.changed:,} of {self.judged_pairs:,} similar questions "
                    "began to have other answers than before, so what had been proved until then is of the past")
        hits, wrong, p = proof.rules[proof.first - 1]
        more = "a longer log, or a larger max_error, may do" if wrong <= self.certificate.max_error * hits else (
            "too many similar questions have other answers, or the judge is too strict")
        return (f"nothing is certified by it: rule {proof.first} would have answered {hits:,}, {wrong:,} of them "
                f"wrong, p = {p:.2g} where {proof.alpha:.2g} was needed to exclude {limit}; {more}")

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Return header and rows: how each rule did on the log, strictest first."""
        header = ("rule", "would have answered", "of them wrong", "p-value", "certified")
        rows: list[tuple[str, ...]] = []
        for number, tested in enumerate(self.proof.rules, 1):
            share = f" ({100 * tested.wrong / tested.hits:.1f} %)" if tested.hits else ""
            rows.append((f"{number}", f"{tested.hits:,}", f"{tested.wrong:,}{share}", f"{tested.p_value:.2g}",
                         "yes" if number <= self.proof.passed else "no"))
        return header, rows

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        proof = asdict(self.proof) | {"rules": [rule._asdict() for rule in self.proof.rules]}
        return {**asdict(self), "proof": proof, "certified": self.certified, "verdict": self.verdict(),
                "certificate": {**asdict(self.certificate), "text": str(self.certificate)}}

    def __str__(self) -> str:
        header, rows = self.table()
        table = [header, *rows]
        widths = [max(len(row[place]) for row in table) for place in range(len(header))]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
        return "\n".join([*(f"{name}: {words}" for name, words in self.facts()), *lines])

    def _repr_html_(self) -> str:
        header, rows = self.table()
        head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        return f"{html_facts(self.facts())}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
