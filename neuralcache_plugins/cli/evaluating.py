"""``evaluate``, ``simulate``, ``replay`` and ``tune``: the instruments of the package ``evaluation`` as verbs."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table as Grid

from neuralcache_plugins.cli.opening import opened, url_of
from neuralcache_plugins.cli.verbs import StoreUrl
from neuralcache_plugins.errors import InvalidInputError
from neuralcache_plugins.reranker import Reranker
from neuralcache_plugins.settings import RerankSettings, from_environment

if TYPE_CHECKING:
    from neuralcache_plugins.evaluation import JudgedSet, Stream, Table

PIPED_WIDTH = 160
"""Columns of a table that goes into a file or another program: nothing is folded there."""

AsJson = Annotated[bool, typer.Option("--json", help="For programs: everything but per-question values, on stdout.")]
CsvFile = Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Also write the figures as CSV.")]
PlotFile = Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Also draw them: .png, .svg, .pdf.")]
Namespaces = Annotated[list[str] | None, typer.Option(
    "--namespace", metavar="NAME", help="Only this namespace; may be repeated. Default: all.")]
Changes = Annotated[list[str] | None, typer.Option(
    "--set", metavar="NAME=VALUE", help="A setting other than the environment's; may be repeated.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of everything drawn at random.")]


def evaluate(
    path: Annotated[Path, typer.Argument(
        metavar="FOLDER", help="corpus.jsonl, queries.jsonl and qrels/test.tsv (BEIR) or qrels.tsv; .gz is fine.")],
    reranker: Annotated[list[str] | None, typer.Option(
        "--reranker", metavar="NAME", help="ours, or module:name of a compressor, postprocessor or (query, texts) -> "
        "positions; may be repeated.")] = None,
    first_stage: Annotated[str, typer.Option(
        "--first-stage", metavar="HOW", help="bm25, dense, or a run file (TREC, or ranx JSON).")] = "bm25",
    metric: Annotated[list[str] | None, typer.Option(
        "--metric", metavar="NAME", help="As ir-measures calls it; may be repeated.")] = None,
    candidates: Annotated[int, typer.Option("--candidates", min=1, help="Documents to rerank per question.")] = 50,
    split: Annotated[str, typer.Option("--split", help="Which qrels of a BEIR folder.")] = "test",
    query_field: Annotated[str, typer.Option("--query-field", help="Field of queries.jsonl to ask.")] = "text",
    runs: Annotated[Path | None, typer.Option(
        "--runs", metavar="FOLDER", help="Also write each reranker's run as a TREC file.")] = None,
    changes: Changes = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    csv: CsvFile = None,
    plot: PlotFile = None,
) -> None:
    """Rerank a judged set and compare with the input order: metrics, intervals, p-values, CPU time."""
    from neuralcache_plugins import evaluation

    judged = evaluation.JudgedSet.load(path, split=split, query_field=query_field)
    with Reranker(store="memory://", settings=_settings(changes)) as ours, progress_bar("evaluating") as progress:
        found = evaluation.evaluate(
            judged, {name: ours if name == "ours" else _imported(name) for name in reranker or ["ours"]},
            metrics=metric or ("nDCG@10", "RR@10", "R@10"), first_stage=first_stage, candidates=candidates, seed=seed,
            progress=progress,
        )
    if runs is not None:
        runs.mkdir(parents=True, exist_ok=True)
        for score in found.scores:
            score.run.save(runs / f"{_file_name(score.name)}.trec")
    _give(found, as_json=as_json, csv=csv, plot=plot)


def simulate(
    path: Annotated[Path | None, typer.Argument(
        metavar="[FOLDER]", help="A judged set; default: a synthetic stream, which needs no data.")] = None,
    questions: Annotated[int, typer.Option("--questions", min=1, help="Of the synthetic stream.")] = 2_000,
    documents: Annotated[int, typer.Option("--documents", min=2, help="Of the synthetic stream.")] = 40,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Ask only so many of the questions.")] = None,
    shown: Annotated[int, typer.Option("--shown", min=1, help="Documents shown per question.")] = 5,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Passes, each in another order.")] = 5,
    clicks: Annotated[float, typer.Option("--clicks", help="Share of the questions that get feedback.")] = 1.0,
    noise: Annotated[float, typer.Option("--noise", help="Share of honest feedback that hits a wrong document.")] = 0.0,
    position_bias: Annotated[float, typer.Option(
        "--position-bias", help="A document at rank r is looked at with probability r^-this.")] = 0.0,
    delay: Annotated[int, typer.Option("--delay", help="Feedback arrives so many questions later.")] = 0,
    hostile: Annotated[float, typer.Option("--hostile", help="Share of the feedback that is an adversary's.")] = 0.0,
    adversary: Annotated[str, typer.Option("--adversary", help="random, wrong, topmost or push.")] = "wrong",
    drift_at: Annotated[float | None, typer.Option(
        "--drift-at", help="Half of the documents swap meaning at this share of the stream.")] = None,
    changes: Changes = None,
    as_json: AsJson = False,
    csv: CsvFile = None,
    plot: PlotFile = None,
) -> None:
    """Let simulated people ask and give feedback, and watch how fast it learns and what it withstands."""
    from neuralcache_plugins import evaluation

    settings = _settings(changes)
    # the model itself refuses an adversary that it does not know
    model = evaluation.FeedbackModel(
        click_probability=clicks, noise=noise, position_bias=position_bias, delay=delay, adversary_share=hostile,
        adversary=adversary, drift_at=drift_at,  # type: ignore[arg-type]
    )
    stream = _stream(path, questions, documents)
    with progress_bar("simulating") as progress:
        found = evaluation.simulate(
            stream, model, settings=settings, shown=shown, seeds=seeds, limit=limit, progress=progress
        )
    _give(found, as_json=as_json, csv=csv, plot=plot)


def replay(
    store: StoreUrl = None,
    namespace: Namespaces = None,
    changes: Changes = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    csv: CsvFile = None,
    plot: PlotFile = None,
) -> None:
    """Send your own log through other settings, and say what that would have changed. Reads only."""
    from neuralcache_plugins import evaluation

    settings = _settings(changes)
    with opened(url_of(store), must_exist=True) as source, progress_bar("replaying") as progress:
        found = evaluation.replay(
            source, settings=settings, namespace=namespace, logged_with=from_environment(RerankSettings), seed=seed,
            progress=progress,
        )
    further = found.counterfactual_table()
    _give(found, as_json=as_json, csv=csv, plot=plot, also=[] if further is None else [further],
          lines=[*found.claims, *(f"warning: {line}" for line in found.warnings)])


def tune(
    store: StoreUrl = None,
    namespace: Namespaces = None,
    attempts: Annotated[list[str] | None, typer.Option(
        "--try", metavar="NAME=A,B,C", help="Values of a setting to try; may be repeated.")] = None,
    metric: Annotated[str, typer.Option("--metric", help="RR, first or log-loss.")] = "RR",
    held_out: Annotated[float, typer.Option(
        "--held-out", help="Share of the log, its end, to prove the choice on.")] = 0.3,
    trials: Annotated[int, typer.Option("--trials", min=1, help="Most combinations to replay.")] = 30,
    write: Annotated[Path | None, typer.Option(
        "--write", metavar="FILE", help="Write what is recommended: .toml, else lines for the environment.")] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    csv: CsvFile = None,
    plot: PlotFile = None,
) -> None:
    """Find settings that do better on your own log, or say that none does. The log is only read."""
    from neuralcache_plugins import evaluation

    space = dict(_values(one) for one in attempts) if attempts else None
    with opened(url_of(store), must_exist=True) as source, progress_bar("replaying") as progress:
        found = evaluation.tune(
            source, space, settings=from_environment(RerankSettings), namespace=namespace, metric=metric,
            held_out=held_out, trials=trials, seed=seed, progress=progress,
        )
    lines = [found.reason]
    if write is not None and found.recommended is not None:
        found.save(write)
        lines.append(f"wrote {write}")
    _give(found, as_json=as_json, csv=csv, plot=plot, lines=lines)


def _give(
    result: Any, *, as_json: bool, csv: Path | None, plot: Path | None, also: Sequence[Table] = (),
    lines: Sequence[str] = (),
) -> None:
    try:
        if csv is not None:
            result.to_csv(csv)
        if plot is not None:
            result.plot().savefig(plot, dpi=150)
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{csv or plot} cannot be written: {error}") from error
    if as_json:
        typer.echo(json.dumps(result.as_dict(), indent=2, allow_nan=False))
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    for table in (result.table(), *also):
        _show(console, table)
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _show(console: Console, table: Table) -> None:
    console.print(table.caption, markup=False, soft_wrap=True)
    grid = Grid(box=box.SIMPLE_HEAD)
    for place, name in enumerate(table.header):
        grid.add_column(name, justify="left" if place == 0 else "right", overflow="fold")
    for row in table.rows:
        grid.add_row(*row)
    console.print(grid, markup=False)


@contextmanager
def progress_bar(what: str) -> Iterator[Any]:
    """Show progress on stderr, where it is a terminal, and leave nothing behind: stdout is the result's."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _settings(changes: Sequence[str] | None) -> RerankSettings:
    from neuralcache_plugins.evaluation.tuning import changed

    pairs = dict(_pair(one, "--set") for one in changes or ())
    if unknown := [name for name in pairs if name not in RerankSettings.model_fields]:
        raise InvalidInputError(f"RerankSettings has no {unknown[0]!r}")
    return changed(from_environment(RerankSettings), pairs)


def _values(attempt: str) -> tuple[str, list[str]]:
    name, values = _pair(attempt, "--try")
    return name, values.split(",")


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not value:
        raise InvalidInputError(f"{option} must look like lexical_weight=0.3, got {text!r}")
    return name.strip(), value.strip()


def _stream(path: Path | None, questions: int, documents: int) -> Stream:
    from neuralcache_plugins import evaluation

    if path is None:
        return evaluation.Stream.synthetic(questions=questions, documents=documents)
    judged: JudgedSet = evaluation.JudgedSet.load(path)
    return evaluation.Stream.of_judged(judged, evaluation.lexical_run(judged))


def _imported(name: str) -> Any:
    """Return what ``module:name`` names; a class is called without arguments."""
    if name in ("input", "input order"):
        return None
    module, colon, attribute = name.partition(":")
    if not colon:
        raise InvalidInputError(f"--reranker must be ours or module:name, got {name!r}")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InvalidInputError(f"--reranker {name} cannot be imported: {error}") from error
    return found() if isinstance(found, type) else found


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)
