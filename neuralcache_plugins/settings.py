"""Every setting, validated at construction and frozen. The only reader of the environment.

``RerankSettings(diversity=0.3)`` sets one value; ``NEURALCACHE_RERANK_DIVERSITY=0.3`` does the same from outside;
an argument beats the environment. A changed copy that is checked: ``RerankSettings(**settings.model_dump() | {...})``.
"""

from __future__ import annotations

import json
import os
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal, TypeAlias, TypeVar

from platformdirs import user_data_path
from pydantic import BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, SettingsConfigDict

from neuralcache_plugins.errors import InvalidInputError

Settings = TypeVar("Settings", bound=BaseSettings)


def _table(given: object) -> object:
    """Return a table from its JSON, as it stands in a variable; anything else as it is."""
    if not isinstance(given, str):
        return given
    try:
        return json.loads(given)
    except ValueError as error:
        raise ValueError(f'a table is written as JSON, {{"marker": 0.5}}: {error}') from error


# not decoded by pydantic-settings, which would mix the table of the environment into one that is an argument
Weights: TypeAlias = Annotated[dict[str, Annotated[float, Field(ge=0, le=1)]], NoDecode, BeforeValidator(_table)]


def _config(prefix: str) -> SettingsConfigDict:
    return SettingsConfigDict(env_prefix=prefix, frozen=True, extra="forbid", env_ignore_empty=True)


class RerankSettings(BaseSettings):
    """How candidates are ordered and what is learned (``NEURALCACHE_RERANK_*``)."""

    model_config = _config("NEURALCACHE_RERANK_")

    lexical_weight: float = Field(
        0.8, ge=0, le=10, description="weight of word overlap beside the retriever's score; 0.3 over hybrid retrievers"
    )
    dense_weight: float = Field(
        0.3, ge=0, le=10, description="weight of the encoder's cosine beside the retriever's score"
    )
    learning: bool = Field(True, description="False keeps the cold order; feedback is still recorded")
    half_life_seconds: float = Field(30 * 86400.0, ge=0.001, description="a document's credit halves in this time")
    narrative_weight: float = Field(
        3.0, ge=0, le=10, description="how much a session's narrative bends a question that says little by itself"
    )
    narrative_rate: float = Field(0.5, gt=0, le=1, description="how fast a session's narrative follows what helped")
    questions_per_document: int = Field(64, ge=1, le=4096, description="remembered questions kept for one document")
    max_documents: int = Field(20_000, ge=1, description="documents with memory per namespace; the stalest goes")
    max_questions: int = Field(
        100_000, ge=1, description="remembered questions per namespace and encoder; the stalest document goes"
    )
    namespaces_in_memory: int = Field(
        500, ge=1, description="namespaces whose memory is kept ready; others are read from the log when asked for"
    )
    max_sessions: int = Field(2_000, ge=1, description="session narratives per namespace; the stalest goes")
    diversity: float = Field(
        0.0,
        ge=0,
        le=1,
        description="0 = pure worth, 1 = pure novelty (maximal marginal relevance); no effect beside exploration",
    )
    exploration: float = Field(0.0, ge=0, le=1, description="probability that a rank is filled at random; recorded")
    scorer_budget: int = Field(50, ge=1, description="most candidates that reach the optional scorer")
    scorer_weight: float = Field(1.0, ge=0, le=10, description="weight of the scorer beside the cheap signals")
    encoder_timeout_seconds: float | None = Field(
        None, gt=0, description="async encoders that take longer count as failed"
    )
    source_weights: Weights = Field(
        {},
        description='what feedback of a source counts, by its name or what stands before a colon: {"marker": 0.5}; '
        "others count 1; 0: learn nothing from it",
    )
    texts_in_memory: int = Field(20_000, ge=1, description="texts whose word statistics are kept in memory")
    shown_characters: int = Field(
        20_000_000, ge=0, description="characters of shown texts kept in memory, to see what answers used; 0: none"
    )
    seed: int = Field(0, ge=0, description="seed of exploration")


class CacheSettings(BaseSettings):
    """What an answer from the cache must promise, and how long and how much is kept (``NEURALCACHE_CACHE_*``)."""

    model_config = _config("NEURALCACHE_CACHE_")

    max_error: float = Field(
        0.02, ge=0.001, le=0.5, description="largest share of wrong answers among those reused for similar questions"
    )
    confidence: float = Field(0.95, ge=0.5, lt=1, description="how sure that must be before anything is reused")
    audit_rate: float = Field(
        0.1, gt=0, le=1, description="share of reused answers compared with a fresh one; every second while in doubt"
    )
    judge_error: float = Field(
        0.0, ge=0, le=0.9, description="share of wrong answers that your judge takes for right; tightens the bound"
    )
    semantic: bool = Field(True, description="False answers exact repeats only, and embeds nothing")
    ttl_seconds: float | None = Field(
        7 * 86400.0, gt=0, description="how long an answer may be served, from when it was put; None: for ever"
    )
    negative_ttl_seconds: float = Field(
        60.0, ge=0, description="the same for None and empty answers, so that a new document is found soon; 0: not kept"
    )
    stale_seconds: float = Field(
        0.0, ge=0, description="how long an expired answer may still be served while a fresh one is computed"
    )
    max_entries: int = Field(100_000, ge=1, description="answers kept in the store; the least worthy goes")
    max_bytes: int = Field(1 << 30, ge=1, description="bytes of answers kept in the store; the least worthy goes")
    index: Literal["auto", "exact", "usearch"] = Field(
        "auto", description="how similar questions are found among many: by usearch where it is installed, one by one, "
        "or by usearch, which then has to be installed"
    )
    ann_threshold: int = Field(20_000, ge=1, description="entries of one scope from which usearch finds them")
    answers_in_memory: int = Field(10_000, ge=0, description="answers kept in this process's memory as well")
    lease_seconds: float = Field(
        60.0, gt=0, description="how long other processes wait for one that computes the same answer"
    )
    cost_per_answer: float = Field(
        0.0, ge=0, description="what computing an answer costs, in any unit; stats() tells what was saved"
    )


class StoreSettings(BaseSettings):
    """Where telemetry goes and what it holds (``NEURALCACHE_STORE_*``)."""

    model_config = _config("NEURALCACHE_STORE_")

    url: SecretStr | None = Field(None, description="store URL; default: a SQLite file in the user's data folder")
    store_text: bool = Field(False, description="also keep the text of questions and shown documents")
    synchronous: Literal["normal", "full"] = Field("normal", description='"full" also survives loss of power')
    busy_timeout_seconds: float = Field(5.0, ge=0, le=3600, description="how long to wait for another writer")
    flush_interval_seconds: float = Field(
        0.25, gt=0, le=3600, description="served rankings are written at least this often"
    )
    buffer_rankings: int = Field(
        10_000, ge=1, description="rankings waiting to be written; beyond it the newest is dropped"
    )
    retention_seconds: float | None = Field(None, gt=0, description="events older than this are erased by the recorder")
    snapshot_every: int = Field(10_000, ge=1, description="events between two snapshots of the learned state")
    vectors_in_memory: int = Field(20_000, ge=0, description="text vectors kept in memory")
    vectors_on_disk: int = Field(200_000, ge=0, description="text vectors kept in the store")

    def resolved_url(self) -> str:
        """Return the URL to open: the configured one, or the default file in the user's data folder."""
        if self.url is not None:
            return self.url.get_secret_value()
        return default_store_url()


def default_store_url(folder: Path | None = None) -> str:
    """Return the URL of the default SQLite file; never in the current directory."""
    place = folder or user_data_path("neuralcache-plugins", appauthor=False)
    return f"sqlite:///{(place / 'telemetry.db').as_posix()}"


def from_environment(kind: type[Settings]) -> Settings:
    """Return settings made of the environment; ``InvalidInputError`` names the variable that cannot be used."""
    try:
        return kind()
    except ValidationError as error:
        prefix = kind.model_config.get("env_prefix", "")
        told = [
            f"{prefix}{'_'.join(map(str, fault['loc'])).upper()}: {fault['msg']}, got {fault['input']!r}"
            for fault in error.errors()
        ]
        raise InvalidInputError("; ".join(told)) from error


def unknown_variables() -> dict[str, str | None]:
    """Return variables that look like settings of this package and are none, each with the setting that was meant.

    Pydantic overlooks them, so a slip of the pen would go unnoticed.
    """
    kinds = (RerankSettings, CacheSettings, StoreSettings)
    known = [f"{kind.model_config.get('env_prefix', '')}{name.upper()}" for kind in kinds for name in kind.model_fields]
    given = map(str.upper, os.environ)  # noqa: TID251  # this is settings.py
    names = sorted(name for name in given if name.startswith("NEURALCACHE_"))
    return {name: next(iter(get_close_matches(name, known, n=1)), None) for name in names if name not in known}


def origins(settings: BaseSettings) -> dict[str, str]:
    """Return where each value came from, by field: "default", "environment" or "argument"."""
    outside = EnvSettingsSource(type(settings))()
    ambient = type(settings)() if outside else settings
    found = dict.fromkeys(type(settings).model_fields, "default")
    for name in settings.model_fields_set:
        same = name in outside and getattr(settings, name) == getattr(ambient, name)
        found[name] = "environment" if same else "argument"
    return found
