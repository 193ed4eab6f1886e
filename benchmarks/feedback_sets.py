"""Answers with known sources, for ``benchmarks/feedback.py``.

Every set is split in two by conversation, article or claim: the weights of ``neuralcache_plugins.attribution`` were
fitted on the first halves of squad and mtrag; the second halves, and all of scifact and banking77, were held out.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from neuralcache_plugins.attribution.evidence import sentences

RETRIEVED = 10
TEMPLATES = ("The answer is {}.", "{}", "It is {}, according to the documents.", "{}.")
SENTENCES = (
    "What you are looking for is {}.", "{}", "I would read the entry on {} first, it should settle your question.",
    "See {}.", "In short: {}. Is there anything else I can help with?",
)
REFUSALS = (
    "I don't know.", "I'm sorry, but I can't find the answer in the provided documents.",
    "The context does not mention that.", "I do not have enough information to answer this question.",
    "Unfortunately, there is no information about this in the sources.", "Sorry, I cannot answer that.",
    "Das wei\u00df ich leider nicht.", "Je ne sais pas.", "Lo siento, no tengo informaci\u00f3n sobre eso.",
)


@dataclass(frozen=True, slots=True, eq=False)
class Told:
    """One answer to ``query``, the passages shown for it, and whether each was used."""

    group: str
    query: str
    answer: str
    ids: list[str]
    texts: list[str]
    used: np.ndarray

    @property
    def design(self) -> bool:
        """Whether this belongs to the half that the weights were fitted on."""
        return design(self.group)


def design(group: str) -> bool:
    """Return whether a conversation, article or claim belongs to the half that things were chosen on."""
    return hashlib.md5(group.encode(), usedforsecurity=False).digest()[0] % 2 == 0


def mtrag(data: Path, name: str) -> list[Told]:
    """Return reference answers, and the passages that annotators saw, by their last vote."""
    folder = data / name
    turns = {row["id"]: row for row in _lines(folder / "queries.jsonl.gz")}
    texts = {row["id"]: row["text"] for row in _lines(folder / "corpus.jsonl.gz")}
    votes: dict[str, list[tuple[str, bool]]] = {}
    for row in _lines(folder / "feedback.jsonl.gz"):
        if row["votes"]:
            votes.setdefault(row["query"], []).append((row["doc"], row["votes"][-1] == "yes"))
    return [
        Told(turns[turn]["conversation"], turns[turn]["text"], turns[turn]["answer"], [doc for doc, _ in voted],
             [texts[doc] for doc, _ in voted], np.array([yes for _, yes in voted]))
        for turn, voted in votes.items()
    ]


def squad(data: Path) -> list[Told]:
    """Return the sentence that holds the answer; its passage is among ten."""
    return [one for one, _ in _squad(data)]


def squad_short(data: Path) -> list[Told]:
    """Return the answer alone, in one of four templates."""
    return [replace(one, answer=TEMPLATES[place % len(TEMPLATES)].format(short))
            for place, (one, short) in enumerate(_squad(data))]


def squad_absent(data: Path) -> list[Told]:
    """Return the same sentences, their passages not among those shown: nothing was used."""
    found = []
    for one in squad(data)[::2]:
        rest = np.flatnonzero(~one.used).tolist()
        found.append(replace(one, ids=[one.ids[at] for at in rest], texts=[one.texts[at] for at in rest],
                             used=np.zeros(len(rest), dtype=bool)))
    return found


def squad_snippets(data: Path) -> list[Told]:
    """Return documents of a few words: an answer of squad among the nine that share most words."""
    of: dict[str, dict[str, str]] = {}
    for one, short in _squad(data):
        if len(short.split()) in range(2, 9):
            of.setdefault(one.group, {}).setdefault(short.lower(), one.query)
    found = []
    for group, shorts in of.items():
        for place, (short, query) in enumerate(shorts.items()):
            words = set(short.split())
            near = sorted(shorts, key=lambda other: (other != short, -len(words & set(other.split())), other))
            shown = sorted(near[:RETRIEVED])
            found.append(Told(group, query, SENTENCES[place % len(SENTENCES)].format(short), shown, shown,
                              np.array([other == short for other in shown])))
    return found


def squad_refused(data: Path) -> list[Told]:
    """Return questions that their passage does not answer, and answers that say so, in nine wordings."""
    found = [
        (row, top) for row, top in _retrieved(data, "squad") if not row["answerable"]
    ]
    return [Told(row["passage"], row["text"], REFUSALS[place % len(REFUSALS)], [one["id"] for one in top],
                 [one["text"] for one in top], np.zeros(len(top), dtype=bool))
            for place, (row, top) in enumerate(found)]


def scifact(data: Path) -> list[Told]:
    """Return claims as answers, among ten abstracts of which some are cited: paraphrase at its hardest."""
    cited: dict[str, set[str]] = {}
    for line in (data / "scifact" / "qrels.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        claim, abstract, _ = line.split("\t")
        cited.setdefault(claim, set()).add(abstract)
    found = []
    for row, top in _retrieved(data, "scifact"):
        used = np.array([one["id"] in cited.get(row["id"], ()) for one in top])
        if used.any():
            found.append(Told(row["id"], "", row["text"], [one["id"] for one in top],
                              [f"{one['title']}. {one['text']}" for one in top], used))
    return found


def _squad(data: Path) -> Iterator[tuple[Told, str]]:
    texts = {row["id"]: row["text"] for row in _lines(data / "squad" / "corpus.jsonl.gz")}
    for row, top in _retrieved(data, "squad"):
        if not row["answerable"]:
            continue
        short = row["answers"][0]["text"] if isinstance(row["answers"][0], dict) else row["answers"][0]
        said = next((part for part in sentences(texts[row["passage"]]) if short in part), None)
        if said is None:
            continue
        ids = [one["id"] for one in top]
        if row["passage"] not in ids:
            ids[-1] = row["passage"]
        title = next((one["title"] for one in top if one["id"] == row["passage"]), row["passage"])
        yield Told(title or row["passage"], row["text"], said, ids, [texts[name] for name in ids],
                   np.array([name == row["passage"] for name in ids])), short


def _retrieved(data: Path, name: str) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    folder = data / name
    corpus = list(_lines(folder / "corpus.jsonl.gz"))
    passages = np.load(folder / "corpus.minilm.f16.npy").astype(np.float32)
    questions = np.load(folder / "queries.minilm.f16.npy").astype(np.float32)
    for row, question in zip(_lines(folder / "queries.jsonl.gz"), questions, strict=True):
        yield row, [corpus[place] for place in np.argsort(-(passages @ question), kind="stable")[:RETRIEVED]]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)
