"""``doctor``: what is installed and configured, and whether the store and the local encoder work."""

from __future__ import annotations

import sys
from importlib import metadata
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from neuralcache_plugins.cli.opening import NEW_FILE, is_new_file, learned, now, opened, url_of
from neuralcache_plugins.cli.verbs import StoreUrl
from neuralcache_plugins.contracts import TelemetryStore
from neuralcache_plugins.encoders import LocalEncoder
from neuralcache_plugins.errors import MissingExtraError, StoreCorruptError, StoreError
from neuralcache_plugins.settings import (
    CacheSettings,
    RerankSettings,
    StoreSettings,
    from_environment,
    origins,
    unknown_variables,
)
from neuralcache_plugins.stores import mask

PACKAGES = (
    "neuralcache-plugins", "numpy", "pydantic", "pydantic-settings", "wordllama", "langchain-core", "llama-index-core",
    "typer", "rich", "usearch",
)


def doctor(
    store: StoreUrl = None,
    quarantine: Annotated[bool, typer.Option(
        "--quarantine", help="Move a corrupt SQLite file aside and start fresh.")] = False,
) -> None:
    """Check versions, settings, the store and the local encoder. Ends with 1 when something is wrong."""
    console = Console(highlight=False)
    _show_versions(console)
    _show_settings(console)
    problems = _check_variables()
    encoder, trouble = _check_encoder(console)
    problems += trouble
    problems += _check_store(console, url_of(store), encoder=encoder, quarantine=quarantine)
    for problem in problems:
        typer.echo(f"problem: {problem}", err=True)
    if problems:
        raise typer.Exit(1)
    console.print("no problem found")


def _show_versions(console: Console) -> None:
    table = Table("package", "version", box=box.SIMPLE_HEAD)
    table.add_row("Python", sys.version.split()[0])
    for package in PACKAGES:
        table.add_row(package, _version(package))
    console.print(table)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _show_settings(console: Console) -> None:
    table = Table("setting", "value", "from", box=box.SIMPLE_HEAD)
    table.columns[0].no_wrap = True
    for kind in (RerankSettings, CacheSettings, StoreSettings):
        settings = from_environment(kind)
        prefix = settings.model_config.get("env_prefix", "")
        for name, origin in origins(settings).items():
            value = getattr(settings, name)
            shown = mask(value.get_secret_value()) if hasattr(value, "get_secret_value") else str(value)
            table.add_row(f"{prefix}{name.upper()}", shown, origin)
    console.print(table)


def _check_variables() -> list[str]:
    return [
        f"the environment variable {name} is no setting" + (f"; was {meant} meant?" if meant else "")
        for name, meant in unknown_variables().items()
    ]


def _check_encoder(console: Console) -> tuple[str | None, list[str]]:
    """Load the local encoder; return its fingerprint and problems. Not to have the extra is none."""
    encoder = LocalEncoder()
    try:
        fingerprint = f"{encoder.fingerprint}:{len(encoder.embed_query('hello'))}"
    except MissingExtraError as error:
        console.print(f"local encoder: {error} (embeddings of your own do without it)", markup=False, soft_wrap=True)
        return None, []
    except Exception as error:  # noqa: BLE001  # whatever a broken installation raises is the finding
        return None, [f"the local encoder does not load: {error!r}; "
                      "run: pip install --force-reinstall 'neuralcache-plugins[local]'"]
    console.print(f"local encoder: loads, {fingerprint}", markup=False)
    return fingerprint, []


def _check_store(console: Console, url: str, *, encoder: str | None, quarantine: bool) -> list[str]:
    if is_new_file(url):
        console.print(f"store: {mask(url)}, {NEW_FILE}", markup=False, soft_wrap=True)
        return []
    try:
        with opened(url) as store:
            problem = _show_health(console, store)
            if not problem:
                _show_encoders(console, store, encoder)
                _show_hint(console, store)
                return []
    except StoreCorruptError as error:
        problem = str(error)
    except StoreError as error:
        return [str(error)]
    return _move_aside(console, url) if quarantine else [problem]


def _show_health(console: Console, store: TelemetryStore) -> str:
    """Show facts about the store and return what is wrong with it, or nothing."""
    health = dict(store.health())
    rows = ", ".join(f"{count} {kind}" for kind, count in health.pop("rows").items())
    console.print(f"store: {health.pop('place')}\n  {rows}", markup=False, soft_wrap=True)
    console.print("  " + ", ".join(f"{fact}: {value}" for fact, value in health.items()), markup=False, soft_wrap=True)
    if health["integrity"] == "ok":
        return ""
    return (f"{store.url} is damaged ({health['integrity']}); move it aside and start fresh with: "
            f"python -m neuralcache_plugins doctor --quarantine --store {store.url}")


def _show_encoders(console: Console, store: TelemetryStore, current: str | None) -> None:
    for one in learned(store, store.namespaces()):
        for encoder in one.trust:
            other = "" if encoder == current else (
                "; the local encoder is another: with it, learned vectors of this one are set aside")
            console.print(f"  namespace {one.namespace!r} learned with {encoder}{other}", markup=False, soft_wrap=True)


def _show_hint(console: Console, store: TelemetryStore) -> None:
    entries, settings = store.health().get("answers", {}).get("entries", 0), from_environment(CacheSettings)
    if entries >= settings.ann_threshold and settings.index == "auto" and _version("usearch") == "not installed":
        console.print(f"  {entries} cached answers are searched one by one; quicker with: "
                      "pip install 'neuralcache-plugins[usearch]'", markup=False, soft_wrap=True)


def _move_aside(console: Console, url: str) -> list[str]:
    from neuralcache_plugins.stores.sqlite import quarantine

    place = quarantine(url, at=now())
    with opened(url) as fresh:
        console.print(f"moved the damaged file to {place}\n{fresh.url} starts fresh", markup=False, soft_wrap=True)
    return []
