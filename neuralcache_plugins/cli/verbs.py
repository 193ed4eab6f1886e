"""The verbs but ``doctor``."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from neuralcache_plugins.cli.opening import NEW_FILE, cached, learned, now, opened, pointing_at, url_of
from neuralcache_plugins.contracts import Erasure
from neuralcache_plugins.errors import InvalidInputError
from neuralcache_plugins.reranker import NamespaceStats
from neuralcache_plugins.reranker.stats import moment
from neuralcache_plugins.semantic_cache import CacheStats
from neuralcache_plugins.semantic_cache.certificate import Certificate

StoreUrl = Annotated[str | None, typer.Option(
    "--store", metavar="URL", help="Telemetry store; else NEURALCACHE_STORE_URL, else the user's data folder.")]
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def demo(
    interactive: Annotated[bool, typer.Option("--interactive", help="Ask your own questions, answer y or n.")] = False,
    store: Annotated[str | None, typer.Option(
        "--store", metavar="URL", help="Telemetry store; else the demo's own file in the user's data folder.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Go on with what earlier demos learned in that file.")] = False,
) -> None:
    """Rerank the documentation of Python's standard library, give feedback, watch the order change. Offline."""
    from neuralcache_plugins.demo import default_demo_url, run

    with pointing_at(store or default_demo_url()):
        run(Console(highlight=False), store=store, keep=keep, interactive=interactive)


def stats(
    store: StoreUrl = None,
    namespace: Annotated[str | None, typer.Option("--namespace", metavar="NAME", help="Only this namespace.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show what was recorded, learned and answered from the cache, by namespace. Reads only."""
    with opened(url_of(store), must_exist=True) as source:
        known = source.namespaces()
        if namespace is not None and namespace not in known:
            raise InvalidInputError(
                f"{source.url} has no namespace {namespace!r}; it has: {', '.join(map(repr, known)) or 'none'}")
        wanted = known if namespace is None else [namespace]
        found, answers = learned(source, wanted), cached(source, wanted)
        if as_json:
            told = [asdict(one) | {"cache": _cache_as_dict(answers.get(one.namespace))} for one in found]
            typer.echo(json.dumps({"store": source.url, "namespaces": told}, indent=2))
        else:
            _show(Console(highlight=False), source.url, found, answers)


def forget(
    store: StoreUrl = None,
    namespace: Annotated[str | None, typer.Option("--namespace", metavar="NAME", help="In this namespace.")] = None,
    all_namespaces: Annotated[bool, typer.Option("--all-namespaces", help="In every namespace.")] = False,
    document: Annotated[list[str] | None, typer.Option(
        "--document", metavar="ID", help="Only this document; may be repeated.")] = None,
    session: Annotated[str | None, typer.Option("--session", metavar="ID", help="Only this session.")] = None,
    older_than: Annotated[str | None, typer.Option(
        "--older-than", metavar="AGE", help="Only what is older: 12h, 30d, 8w.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Erase for good, and unlearn. Conditions narrow each other."""
    if (namespace is not None) == all_namespaces:
        raise InvalidInputError("forget needs either --namespace NAME or --all-namespaces, got "
                                f"{'both' if all_namespaces else 'neither'}")
    what = Erasure(
        namespace=namespace,
        document_ids=tuple(document) if document else None,
        session=session,
        older_than=None if older_than is None else now() - _seconds(older_than),
    )
    with opened(url_of(store), must_exist=True) as target:
        if not yes:
            typer.confirm(f"Erase {_described(what)} from {target.url} for good?", abort=True)
        # an erasure wants a condition: everything is what is older than the end of time
        receipt = target.erase(Erasure(older_than=sys.float_info.max) if what == Erasure() else what)
    counts = (f"{count} {name.replace('_', ' ')}" for name, count in asdict(receipt).items())
    typer.echo(f"Erased from {target.url}: {', '.join(counts)}")


def _cache_as_dict(told: CacheStats | None) -> dict[str, Any] | None:
    if told is None or told.logged is None:
        return None
    certificate = asdict(told.certificate) if isinstance(told.certificate, Certificate) else {}
    return {**asdict(told.logged), "certificate": {**certificate, "text": str(told.certificate)}}


def _show(console: Console, url: str, found: list[NamespaceStats], answers: Mapping[str, CacheStats]) -> None:
    console.print(f"store: {url}", markup=False, soft_wrap=True)
    if not found:
        console.print(f"no rankings, no feedback, no answers: {NEW_FILE}")
    for one in found:
        _show_namespace(console, one, answers.get(one.namespace))


def _show_namespace(console: Console, one: NamespaceStats, answers: CacheStats | None) -> None:
    console.print(f"\nnamespace {one.namespace!r}", markup=False, soft_wrap=True)
    if one.rankings or one.feedback or answers is None:
        _show_facts(console, one.facts(), indent=2)
    if answers is not None:
        console.print("  cache of answers", markup=False, soft_wrap=True)
        _show_facts(console, answers.logged_facts(), indent=4)
        console.print("    the limits of the certificate are NEURALCACHE_CACHE_MAX_ERROR and _CONFIDENCE of here",
                      markup=False, soft_wrap=True)
    for encoder, guard in one.guard.items():
        console.print(f"  encoder {encoder}", markup=False, soft_wrap=True)
        _show_facts(console, guard.facts(), indent=4)
        if guard.history:
            header, rows = guard.table()
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
            for number, name in enumerate(header):
                table.add_column(name, justify="right" if number else "left", no_wrap=True)
            for row in rows:
                table.add_row(*row)
            console.print(Padding(table, (0, 0, 0, 2)))


def _show_facts(console: Console, facts: Iterable[tuple[str, str]], *, indent: int) -> None:
    for name, words in facts:
        console.print(f"{' ' * indent}{name}: {words}", markup=False, soft_wrap=True)


def _seconds(age: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", age.strip())
    if match is None:
        raise InvalidInputError(f"--older-than must look like 90s, 45m, 12h, 30d or 8w, got {age!r}")
    return float(match[1]) * UNITS[match[2]]


def _described(what: Erasure) -> str:
    parts = (
        "" if what.document_ids is None else f"documents {', '.join(what.document_ids)}",
        "" if what.session is None else f"session {what.session!r}",
        "" if what.older_than is None else f"what is older than {moment(what.older_than)}",
    )
    place = "every namespace" if what.namespace is None else f"namespace {what.namespace!r}"
    return f"{', '.join(filter(None, parts)) or 'everything'} in {place}"
