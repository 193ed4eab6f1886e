"""Markers as data: TOML files, checked by pydantic, each with its language and version; the packaged ones and yours.

::

    format = 1                      # of this kind of file
    version = "1"                   # of its content: yours to count
    language = "en"                 # part of a marker's name: another file may say it in another language

    [fragments]                     # parts of patterns: @name stands for them
    start = '(?:^|[.!?] )'

    [[markers]]
    id = "gratitude"                # the source of its feedback is "marker:gratitude"
    polarity = "positive"           # or negative, neutral
    weight = 0.7                    # in [0, 1]: the size of the reward
    activation = "ANY"              # or "ALL", "AT_LEAST 2", "WEIGHTED 0.6" (sum of the weights of what matches)
    patterns = ['@start(?:thanks|thank you)', { pattern = 'cheers', weight = 0.5 }]
    unless = ['in advance']         # any of these, and the marker is not there
    scope = "next"                  # it judges the answer before it; "same": the turn that it opens
    not_as_answer = false           # true: not when the assistant had asked something ("Yes." is then an answer)
    resets_narrative = false        # true: the conversation turns to something else

Patterns are in the syntax of RE2 and see folded text (``folding``). ``detector = "repetition"`` instead of patterns
finds a question asked again: ``lexical`` is the share of words that must come again, ``vector`` the least cosine.
``detector = "topic"`` finds a message in which no other marker is and which has nothing to do with what was asked and
answered before: no word in common, and cosines below ``vector``; only where the monitor has an encoder.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from neuralcache_plugins.errors import InvalidInputError

FORMAT = 1
LANGUAGES = ("en", "de", "es")
ANY_LANGUAGE = "any"
_FRAGMENT = re.compile(r"@([a-z_]+)")
_ACTIVATION = re.compile(r"(?P<rule>ANY|ALL|(?:AT_LEAST|WEIGHTED) (?P<amount>\d+(?:\.\d+)?))")

Polarity: TypeAlias = Literal["positive", "negative", "neutral"]
Source: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
Name: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]

_CONFIG = ConfigDict(frozen=True, extra="forbid")


class WeightedPattern(BaseModel):
    """A pattern and what it counts for a marker that adds up weights."""

    model_config = _CONFIG

    pattern: Source
    weight: float = Field(1.0, gt=0, le=1)


class Marker(BaseModel):
    """One thing that people say, and what it tells; the fields are those of the TOML file above."""

    model_config = _CONFIG

    id: Name
    polarity: Polarity
    weight: Share
    activation: str = "ANY"
    patterns: tuple[WeightedPattern, ...] = Field((), max_length=500)
    unless: tuple[Source, ...] = Field((), max_length=500)
    scope: Literal["next", "same"] = "next"
    not_as_answer: bool = False
    resets_narrative: bool = False
    detector: Literal["patterns", "repetition", "topic"] = "patterns"
    lexical: float = Field(0.75, gt=0, le=1)
    vector: float = Field(0.9, gt=0, le=1)

    @field_validator("patterns", mode="before")
    @classmethod
    def _plain_patterns(cls, given: object) -> object:
        if not isinstance(given, Sequence) or isinstance(given, str):
            return given
        return [{"pattern": one} if isinstance(one, str) else one for one in given]

    @model_validator(mode="after")
    def _fits_together(self) -> Marker:
        match = _ACTIVATION.fullmatch(self.activation)
        if match is None:
            raise ValueError(f'activation must be "ANY", "ALL", "AT_LEAST n" or "WEIGHTED x", got {self.activation!r}')
        if bool(self.patterns) == (self.detector != "patterns"):
            raise ValueError('a marker has patterns, or detector = "repetition" or "topic"')
        reachable = sum(one.weight for one in self.patterns) if self._rule == "WEIGHTED" else len(self.patterns)
        if match["amount"] and not 0 < float(match["amount"]) <= reachable:
            raise ValueError(f"{self.activation} is never or always reached with {len(self.patterns)} patterns")
        if self.polarity == "neutral" and self.weight:
            raise ValueError("a neutral marker has weight 0")
        return self

    @property
    def value(self) -> float:
        """The reward: the weight with the sign of the polarity."""
        return {"positive": self.weight, "negative": -self.weight, "neutral": 0.0}[self.polarity]

    @property
    def _rule(self) -> str:
        return self.activation.partition(" ")[0]

    def fires(self, matched: Sequence[bool]) -> bool:
        """Return whether the rule holds, given for each pattern whether it is there."""
        amount = float(self.activation.partition(" ")[2] or 0)
        if self._rule == "WEIGHTED":
            found = sum(one.weight for one, there in zip(self.patterns, matched, strict=True) if there)
            return found >= amount - 1e-9
        needed = {"ANY": 1, "ALL": len(matched)}.get(self._rule, amount)
        return sum(matched) >= needed


class MarkerFile(BaseModel):
    """One TOML file."""

    model_config = _CONFIG

    format: Literal[1]
    version: Annotated[str, StringConstraints(min_length=1, max_length=40)]
    language: Name
    fragments: Mapping[Name, Source] = Field(default_factory=dict)
    markers: tuple[Marker, ...] = Field(max_length=500)

    @model_validator(mode="after")
    def _names_once(self) -> MarkerFile:
        names = [marker.id for marker in self.markers]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"more than one marker {', '.join(map(repr, twice))}")
        return self

    def expanded(self, source: str) -> str:
        """Return a pattern with fragments put in; a fragment holds no other. ``InvalidInputError`` for unknown ones."""

        def fragment(match: re.Match[str]) -> str:
            if match[1] not in self.fragments:
                raise InvalidInputError(f"the pattern {source!r} names @{match[1]}, which is no fragment of its file")
            return self.fragments[match[1]]

        return _FRAGMENT.sub(fragment, source)


class Catalogue:
    """Marker files in order. A marker of a later file takes the place of an earlier one of its id and language."""

    def __init__(self, files: Iterable[MarkerFile]) -> None:
        self.files = tuple(files)

    @property
    def versions(self) -> list[str]:
        """Language and version of each file."""
        return [f"{file.language} {file.version}" for file in self.files]

    def markers(self) -> list[tuple[MarkerFile, Marker]]:
        """Return every marker with the file that it is from, in order."""
        chosen = {(file.language, marker.id): (file, marker) for file in self.files for marker in file.markers}
        return list(chosen.values())


def catalogue(
    more: Iterable[str | Path | MarkerFile] = (), *, languages: Sequence[str] = LANGUAGES, packaged: bool = True
) -> Catalogue:
    """Return the packaged markers of these languages and, after them, your own files.

    ``InvalidInputError`` names the file and what is wrong in it; ``packaged=False`` leaves only your own.
    """
    unknown = sorted(set(languages) - set(LANGUAGES))
    if unknown and packaged:
        raise InvalidInputError(f"languages of the packaged markers are {', '.join(LANGUAGES)}, got {unknown}")
    own = [one if isinstance(one, MarkerFile) else read_file(Path(one)) for one in more]
    return Catalogue([*(_packaged(name) for name in (ANY_LANGUAGE, *languages) if packaged), *own])


def read_file(path: Path) -> MarkerFile:
    """Read a marker file; ``InvalidInputError`` if it cannot be read or is none."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"the marker file {path} cannot be read: {error}") from error
    return parse(text, where=str(path))


def parse(text: str, *, where: str) -> MarkerFile:
    """Return the marker file in a text; ``where`` is for messages."""
    try:
        return MarkerFile.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise InvalidInputError(f"{where} is not TOML: {error}") from error
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'file'}: {fault['msg']}" for fault in error.errors())
        raise InvalidInputError(f"{where}: {told}") from error


@lru_cache(maxsize=8)
def _packaged(language: str) -> MarkerFile:
    place = resources.files(__package__).joinpath("markers", f"{language}.toml")
    return parse(place.read_text("utf-8"), where=f"packaged markers {language}")
