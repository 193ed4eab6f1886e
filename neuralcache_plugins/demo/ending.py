"""The last act: what was recorded, how to look at it with any SQL tool, and how to go on."""

from __future__ import annotations

import json
import subprocess
import sys

from rich import box
from rich.console import Console
from rich.table import Table

from neuralcache_plugins.reranker import Reranker

SQL = """\
SELECT f.document_id, count(*) AS helped,
       max(s.rank) AS worst_rank, min(s.rank) AS best_rank
FROM feedback f JOIN shown_documents s USING (ranking_id, document_id)
WHERE f.namespace = '{namespace}' AND f.reward > 0
GROUP BY f.document_id ORDER BY helped DESC, f.document_id LIMIT 5"""

_RUN_SQL = (
    "import json, sqlite3, sys; rows = sqlite3.connect(sys.argv[1]).execute(sys.argv[2]); "
    "print(json.dumps([[column[0] for column in rows.description], *rows]))"
)


def end(console: Console, reranker: Reranker, *, url: str, here: str) -> None:
    """Show the log through SQL, the counts, and the commands to go on with; everything must be flushed.

    ``here`` are the options that lead the demo to this store again.
    """
    console.rule("What was recorded", align="left")
    learned = reranker.stats().namespace
    console.print(f"Telemetry: {reranker.store.url}", soft_wrap=True)
    console.print(f"Namespace {learned.namespace!r}: {learned.rankings} rankings, {learned.feedback} times feedback, "
                  f"{learned.documents} pages and {learned.remembered_questions} questions known.\n")
    path = reranker.store.url.removeprefix("sqlite:///")
    if reranker.store.url.startswith("sqlite:///") and path != ":memory:":
        _look_with_sql(console, path, learned.namespace)
    _go_on(console, url, here)


def _look_with_sql(console: Console, path: str, namespace: str) -> None:
    """Run the query in another process that knows nothing of this package: any SQLite tool will do."""
    query = SQL.format(namespace=namespace.replace("'", "''"))
    done = subprocess.run([sys.executable, "-c", _RUN_SQL, path, query], capture_output=True, text=True, check=False)
    console.print(query, markup=False, style="italic")
    if done.returncode:
        console.print(f"The query failed: {done.stderr.strip()}", markup=False)
        return
    columns, *rows = json.loads(done.stdout)
    table = Table(*columns, box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*map(str, row))
    console.print(table)


def _go_on(console: Console, url: str, here: str) -> None:
    console.print("How to go on:")
    for command, meaning in (
        (f"demo --interactive {here}", "ask your own questions and answer y/n"),
        (f"stats --store {url}", "what was learned, with weights"),
        (f"forget --store {url} --namespace demo", "erase what this demo recorded"),
    ):
        console.print(f"  # {meaning}\n  python -m neuralcache_plugins {command}", markup=False, soft_wrap=True)
    console.print("In your own pipeline: NeuralCacheCompressor (LangChain) or NeuralCachePostprocessor (LlamaIndex), "
                  "ten lines each in the README; notebooks/01_first_rerank.ipynb walks through both.")
