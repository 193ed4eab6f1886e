"""``calibrate``: a log of questions and answers certifies a cache before it serves its first answer."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from neuralcache_plugins.cli.evaluating import PIPED_WIDTH, AsJson, progress_bar
from neuralcache_plugins.cli.opening import pointing_at, url_of
from neuralcache_plugins.cli.verbs import StoreUrl
from neuralcache_plugins.encoders import LocalEncoder
from neuralcache_plugins.errors import InvalidInputError
from neuralcache_plugins.semantic_cache import CalibrationReport, Judge, SemanticCache, read_records
from neuralcache_plugins.semantic_cache.judges import embedding_agreement, exact, normalised_text
from neuralcache_plugins.settings import CacheSettings, from_environment


def calibrate(
    log: Annotated[Path, typer.Argument(
        metavar="LOG", help="Questions and answers in the order asked: .jsonl or .csv (.gz) with question, answer and "
        "perhaps scope and documents.")],
    store: StoreUrl = None,
    namespace: Annotated[str, typer.Option("--namespace", metavar="NAME", help="The cache's namespace.")] = "default",
    scope: Annotated[str | None, typer.Option(
        "--scope", metavar="SCOPE", help="Scope of lines that name none: a text, or a JSON object.")] = None,
    max_error: Annotated[float | None, typer.Option(
        "--max-error", min=0.001, max=0.5,
        help="Largest share of wrong answers; else NEURALCACHE_CACHE_MAX_ERROR or 0.02.")] = None,
    confidence: Annotated[float | None, typer.Option(
        "--confidence", min=0.5, max=0.9999, help="How sure; else NEURALCACHE_CACHE_CONFIDENCE or 0.95.")] = None,
    judge: Annotated[Literal["normalised", "exact", "embedding"], typer.Option(
        "--judge", help="When one answer may stand for another: equal but for case and punctuation, exactly equal, or "
        "alike in their vectors.")] = "normalised",
    threshold: Annotated[float, typer.Option(
        "--threshold", min=-1, max=1, help="Least cosine of the embedding judge.")] = 0.9,
    encoder: Annotated[str | None, typer.Option(
        "--encoder", metavar="MODULE:NAME", help="The encoder that the cache is used with: an object with embed_query, "
        "or a class or function that makes one. Default: the local one.")] = None,
    question_field: Annotated[str, typer.Option("--question-field", help="Field with the question.")] = "question",
    answer_field: Annotated[str, typer.Option("--answer-field", help="Field with the answer.")] = "answer",
    put: Annotated[bool, typer.Option("--put/--no-put", help="Also put the answers into the cache.")] = True,
    as_json: AsJson = False,
) -> None:
    """Certify a cache from a log, so that it answers similar questions from the start."""
    records = list(read_records(log, question=question_field, answer=answer_field))
    usual = from_environment(CacheSettings)
    given = {"max_error": max_error or usual.max_error, "confidence": confidence or usual.confidence}
    chosen = CacheSettings(**usual.model_dump() | given)
    embed = LocalEncoder() if encoder is None else _imported(encoder)
    judges = {"normalised": normalised_text, "exact": exact}
    agrees: Judge = judges[judge]() if judge in judges else embedding_agreement(embed, threshold=threshold)
    url = url_of(store)
    with (pointing_at(url), SemanticCache(embed, store=url, namespace=namespace, settings=chosen) as cache,
          progress_bar("calibrating") as progress):
        report = cache.calibrate(records, scope=_scope(scope), put=put, judge=agrees, progress=progress)
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=2, allow_nan=False))
    else:
        _show(report, url=cache.url, changed=[name for name in given if given[name] != getattr(usual, name)])


def _show(report: CalibrationReport, *, url: str, changed: list[str]) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    console.print(f"store: {url}", markup=False, soft_wrap=True)
    header, rows = report.table()
    table = Table(*header, box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*row)
    for name, words in report.facts()[:-1]:
        console.print(f"{name}: {words}", markup=False, soft_wrap=True)
    console.print(table)
    for name in changed:
        value = getattr(report.certificate, name)
        console.print(f"the cache has to be used with {name}={value} (NEURALCACHE_CACHE_{name.upper()}) too",
                      markup=False, soft_wrap=True)
    console.print(str(report.certificate), markup=False, soft_wrap=True)


def _scope(given: str | None) -> Any:
    if given is None or not given.lstrip().startswith("{"):
        return given
    try:
        return json.loads(given)
    except ValueError as error:
        raise InvalidInputError(f"--scope must be a text or a JSON object: {error}") from error


def _imported(name: str) -> Any:
    module, colon, attribute = name.partition(":")
    if not colon:
        raise InvalidInputError(f"--encoder must look like module:name, got {name!r}")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InvalidInputError(f"--encoder {name} cannot be imported: {error}") from error
    return found if hasattr(found, "embed_query") and not isinstance(found, type) else found()
