"""Sources that an answer names: ``[1]``, ``[doc-id]``, "Source 2", footnotes, tags, fields of structured answers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_SOURCE = (r"(?:sources?|documents?|docs?|passages?|contexts?|references?|refs?|citations?|quellen?|dokumente?|"
           r"fuentes?|documentos?|fonti|fonte|fontes|ids?)")
# blanks are matched possessively: shared out between neighbours they would take cubic time
_BRACKETS = re.compile(rf"[\[\u3010]{{1,2}}\s*+(?:{_SOURCE}\s*+[:#.]?\s*+)?"
                       r"([^\[\]\u3010\u3011\n]{1,300})[\]\u3011]{1,2}", re.I)
_PARENTHESES = re.compile(rf"\(\s*+(?:see\s++)?{_SOURCE}\s*+[:#.]?\s*+([^()\n]{{1,200}})\)", re.I)
_SPOKEN = re.compile(rf"\b{_SOURCE}\s*+(?:no\.?|nr\.?|number|id)?\s*+[:#]?\s*+"
                     r"(\d{1,3}(?:\s*+(?:,|&|and|und|y|et|e)\s*+\d{1,3}){0,8})\b", re.I)
_TAGS = re.compile(r"<(?:cite|citation|ref|reference|source|doc|document|sup|co)\b([^<>\n]{0,200})>"
                   r"(?:([^<>\n]{0,200})</\w{1,12}>)?", re.I)
_SUPERSCRIPTS = re.compile("(?<=[.,;:!?)\u00bb\"\u201d])([\u00b9\u00b2\u00b3\u2070\u2074-\u2079]{1,3})")
_NOTE = re.compile(r"^[ \t]*(?:\[\^?(\d{1,3})\][:.]?|(\d{1,3})[.)])[ \t]+(\S.*)$", re.M)
_HEADING = re.compile(r"^[ \t#*]*+(?:sources?|references?|citations?|quellen|fuentes|footnotes?|works cited)"
                      r"[ \t*]*+:?[ \t*]*+$", re.I | re.M)
_BETWEEN = re.compile(r"[,;&]|\b(?:and|und|y|et)\b", re.I)
_NUMBER = re.compile(rf"(?:{_SOURCE}\s*+[:#]?\s*+)?\^?#?(\d{{1,3}})(?:\u2020\w*)?$", re.I)
_RANGE = re.compile(r"(\d{1,3})\s*[-\u2013]\s*(\d{1,3})$")
_ATTRIBUTE = re.compile(r"[\w-]+\s*=\s*[\"']?([^\"'\s/>]+)")
_DIGITS = str.maketrans("\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079", "0123456789")
_TELLING_ID = re.compile(r"[\d_:/#.-]")
_FIELDS = re.compile(r"(?:used_?|cited_?|supporting_?)?(?:sources?|source_?(?:ids?|numbers?|index(?:es)?)|citations?|"
                     r"cit(?:ed|es)|references?|refs?|doc(?:ument)?s?|doc(?:ument)?_?(?:ids?|numbers?)|node_?ids?|passages?|"
                     r"passage_?ids?|chunk_?ids?|ids|used|supporting|footnotes?|evidence_?ids?)", re.I)
_NAMES = ("id", "source_id", "doc_id", "document_id", "node_id", "chunk_id", "source", "index", "number")
_TEXTS = ("page_content", "text", "content")
_DEEPEST = 6
_MAX_CHARACTERS = 40_000


@dataclass(slots=True)
class Reading:
    """An answer as it was said: ``text`` without its citations, and what these named: ids, labels or numbers."""

    text: str
    named: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Labels:
    """What citations may say: the documents' ids, and labels (such as numbers) with the position that each means.

    ``numbered`` says whether a number that is no label counts the documents as they were shown, from 1.
    """

    ids: Sequence[str]
    labels: Mapping[str, int] = field(default_factory=dict)
    numbered: bool = True

    def known(self, name: str) -> bool:
        """Return whether ``name`` can be resolved, a number in its range included."""
        return name in self.labels or name in self.ids or (self.numbered and name.isdecimal()
                                                           and int(name) <= len(self.ids))

    def positions(self, named: Sequence[str]) -> set[int]:
        """Return the positions that were named. Where a number is 0, numbers count from 0."""
        first = 0 if "0" in named and not self.labels else 1
        found = set()
        for name in named:
            if name in self.labels:
                found.add(self.labels[name])
            elif name in self.ids:
                found.add(self.ids.index(name))
            elif self.numbered and name.isdecimal() and 0 <= int(name) - first < len(self.ids):
                found.add(int(name) - first)
        return found


def read(answer: Any, labels: Labels, texts: Sequence[str]) -> Reading:
    """Return text and citations of an answer: a str (also JSON), or a mapping, list or model with text and source ids.

    What a document says in brackets itself is no citation when the answer repeats it.
    """
    if isinstance(answer, str):
        structure = _json(answer)
        if structure is None:
            return _of_text(answer[:_MAX_CHARACTERS], labels, texts)
        answer = structure
    said: list[str] = []
    named: list[str] = []
    _walk(answer, said, named, depth=0)
    found = [_of_text(part, labels, texts) for part in said]
    fields = [name for name in (_plain(one) for one in named) if labels.known(name)]
    return Reading("\n".join(one.text for one in found), [*fields, *(name for one in found for name in one.named)])


def _of_text(text: str, labels: Labels, texts: Sequence[str]) -> Reading:
    body, notes = _split_notes(text)
    defined = {number: name for number, line in notes if (name := _id_in(line, labels)) is not None}
    named: list[str] = []

    def take(match: re.Match[str], inner: str) -> str:
        names = _names(inner, labels, defined)
        if names is None or _quoted(match, texts):
            return match.group()
        named.extend(names)
        return " "

    body = _BRACKETS.sub(lambda match: take(match, match.group(1)), body)
    body = _PARENTHESES.sub(lambda match: take(match, match.group(1)), body)
    body = _TAGS.sub(lambda match: take(match, ",".join([*_ATTRIBUTE.findall(match.group(1)),
                                                         *([match.group(2)] if match.group(2) else [])])), body)
    body = _SUPERSCRIPTS.sub(lambda match: take(match, match.group(1).translate(_DIGITS)), body)
    body = _SPOKEN.sub(lambda match: take(match, match.group(1)), body)
    named += [name for name in labels.ids if _telling(name) and _stands_in(name, body)
              and not any(name in text for text in texts)]
    if not named:  # a list of sources without marks in the text
        named = [defined.get(number, number) for number, _ in notes if number in defined or labels.known(number)]
    return Reading(body, named)


def _split_notes(text: str) -> tuple[str, list[tuple[str, str]]]:
    """Return the text before its footnotes or list of sources, and these as (number, line)."""
    heading = None
    for heading in _HEADING.finditer(text):  # noqa: B007  # the last one
        pass
    start = len(text) if heading is None else heading.start()
    footnotes = [match for match in _NOTE.finditer(text, 0, start) if match.group().lstrip().startswith("[^")]
    notes = [(match.group(1) or match.group(2), match.group(3)) for match in [*footnotes, *_NOTE.finditer(text, start)]]
    if not notes:
        return text, []
    body = text[:start]
    for match in reversed(footnotes):
        body = body[: match.start()] + body[match.end() :]
    return body, notes


def _names(inner: str, labels: Labels, defined: Mapping[str, str]) -> list[str] | None:
    """Return what one mark names; None if it is no citation."""
    whole = _plain(inner)
    if labels.known(whole) and not whole.isdecimal():
        return [whole]
    found: list[str] = []
    for piece in map(str.strip, _BETWEEN.split(inner)):
        span = _RANGE.match(piece)
        if span is not None and int(span[1]) < int(span[2]):
            names = [str(number) for number in range(int(span[1]), min(int(span[2]), int(span[1]) + 50) + 1)]
        else:
            names = [_plain(piece)]
        names = [defined.get(name, name) for name in names]
        if not all(map(labels.known, names)):
            return None
        found += names
    return found or None


def _plain(piece: str) -> str:
    piece = str(piece).strip().strip("\"'`").strip()
    number = _NUMBER.match(piece)
    return str(int(number[1])) if number else piece


def _quoted(match: re.Match[str], texts: Sequence[str]) -> bool:
    """Return whether the mark, with the word before it, stands in a document as well."""
    before = match.string[max(0, match.start() - 12) : match.start()]
    return any(f"{before}{match.group()}" in text for text in texts) if before.strip() else False


def _telling(name: str) -> bool:
    """Return whether an id is unlike a word, so that it cannot stand in an answer by chance."""
    return len(name) >= 4 and not name.isdecimal() and _TELLING_ID.search(name) is not None


def _stands_in(name: str, text: str) -> bool:
    start = text.find(name)
    while start >= 0:
        around = text[max(0, start - 1) : start] + text[start + len(name) : start + len(name) + 1]
        if not any(letter.isalnum() or letter in "_-" for letter in around):
            return True
        start = text.find(name, start + 1)
    return False


def _id_in(line: str, labels: Labels) -> str | None:
    known = (name for name in labels.ids if len(name) > 1 and not name.isdecimal())
    return next((name for name in known if _stands_in(name, line)), None)


def _json(text: str) -> Any:
    inner = text.strip()
    if inner.startswith("```"):
        inner = inner.partition("\n")[2].rpartition("```")[0].strip()
    if not inner.startswith(("{", "[{")) or len(inner) > _MAX_CHARACTERS:
        return None
    try:
        found = json.loads(inner)
    except (ValueError, RecursionError):
        return None
    return found


def _walk(value: Any, said: list[str], named: list[str], *, depth: int) -> None:
    """Collect the texts of a structure and, from fields that hold sources, their names."""
    if depth > _DEEPEST:
        return
    if isinstance(value, str):
        said.append(value[:_MAX_CHARACTERS])
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if _FIELDS.fullmatch(str(key)):
                named.extend(_references(inner))
            else:
                _walk(inner, said, named, depth=depth + 1)
    elif isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        for inner in value:
            _walk(inner, said, named, depth=depth + 1)
    elif hasattr(value, "model_dump"):
        _walk(value.model_dump(), said, named, depth=depth + 1)


def _references(value: Any) -> Iterator[str]:
    """Yield the names in a field of sources; whole documents are what was shown, and name nothing."""
    if isinstance(value, str | int) and not isinstance(value, bool):
        yield from _BETWEEN.split(value) if isinstance(value, str) else [str(value)]
        if isinstance(value, str):
            yield value
    elif isinstance(value, Mapping):
        if not any(key in value for key in _TEXTS):
            yield from (str(value[key]) for key in _NAMES if isinstance(value.get(key), str | int))
    elif isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        for inner in value:
            yield from _references(inner)
