"""The notebooks run as they are, in this very environment, and show what they computed."""

from __future__ import annotations

import gc
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))


class OwnKernel(AsyncKernelManager):
    """Knows no kernel but that of this interpreter."""

    def __init__(self, **options: Any) -> None:
        super().__init__(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]), **options)


def code_cells(path: Path) -> list[Any]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def test_there_is_a_notebook() -> None:
    assert [path.name for path in NOTEBOOKS][:1] == ["01_first_rerank.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_without_an_error(path: Path, tmp_path: Path) -> None:
    """In a fresh kernel of this interpreter, whatever kernels the machine has installed."""
    book = nbformat.read(path, as_version=4)
    book.cells.append(nbformat.v4.new_code_cell("import sys; print(sys.executable)"))

    NotebookClient(book, kernel_name="python3", kernel_manager_class=OwnKernel, timeout=60,
                   resources={"metadata": {"path": str(tmp_path)}}).execute()
    gc.collect()  # whatever was left open shows here, not in another test

    assert book.cells.pop().outputs[0].text.strip() == sys.executable
    assert list(tmp_path.iterdir()) == []
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    assert {output.output_type for output in outputs} <= {"execute_result", "display_data"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_outputs_of_a_notebook_were_committed(path: Path) -> None:
    """Every cell that ends with an expression shows it, and the cells were run once, in order."""
    cells = code_cells(path)

    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert sum(bool(cell.outputs) for cell in cells) >= len(cells) // 2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_outputs_of_a_notebook_show_no_place_on_a_machine(path: Path) -> None:
    shown = "\n".join(str(output) for cell in code_cells(path) for output in cell.outputs)

    assert re.findall(r"(?:/home|/root|/tmp|/Users|/var|[A-Z]:\\\\)\S*", shown) == []
