"""The command line: one function per verb.

A ``NeuralCacheError`` becomes a message on stderr and exit code 2. ``doctor`` ends with 1 when something is wrong.
"""

from __future__ import annotations

from typing import Any

from neuralcache_plugins.errors import MissingExtraError, NeuralCacheError

try:
    import rich
    import typer
except ImportError as error:
    # a broken installation of either (another name) must not be reported as a missing one
    if error.name not in {"rich", "typer"}:
        raise
    raise MissingExtraError(error.name, extra="cli") from error

from typer.core import TyperGroup

from neuralcache_plugins.cli.calibrating import calibrate
from neuralcache_plugins.cli.checkup import doctor
from neuralcache_plugins.cli.evaluating import evaluate, replay, simulate, tune
from neuralcache_plugins.cli.verbs import demo, forget, stats

__all__ = ["app"]

del rich


class _Verbs(TyperGroup):
    """Turns the package's errors into messages."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb."""
        try:
            return super().invoke(ctx)
        except NeuralCacheError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(2) from error


app = typer.Typer(
    cls=_Verbs, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Reranking that learns, inside LangChain and LlamaIndex.",
)

for _verb in (demo, stats, forget, doctor, calibrate, evaluate, simulate, replay, tune):
    app.command()(_verb)
