"""Runs a notebook's cells in an empty folder, and writes their outputs into it.

    pip install -e '.[notebook]' && python scripts/run_notebook.py notebooks/text_classification.ipynb

Cells with the tag `not-run` (for other devices) are passed over. What a cell logs to stderr is not kept:
it holds times and folders of this machine.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

NOT_RUN = "not-run"


def run_notebook(path: Path, folder: Path) -> None:
    """Runs the cells of a notebook, and writes it back with its outputs.

    Args:
      folder: the working directory of the cells.
    Raises:
      nbclient.exceptions.CellExecutionError: a cell fails; the file stays as it was.
    """
    nbformat, client = import_module("nbformat"), import_module("nbclient")
    notebook = nbformat.read(path, as_version=4)
    whole = notebook.cells
    notebook.cells = [cell for cell in whole if NOT_RUN not in cell.metadata.get("tags", [])]
    runner = client.NotebookClient(
        notebook, timeout=None, resources={"metadata": {"path": str(folder)}}, on_cell_executed=_show
    )
    runner.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.cells = whole
    path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


def _show(cell: Any, **_: Any) -> None:
    for output in cell.get("outputs", ()):
        print(output.get("text") or output.get("data", {}).get("text/plain") or output.get("ename"), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs a notebook on the CPU and keeps its outputs in it.")
    parser.add_argument("notebook", type=Path)
    options = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    with tempfile.TemporaryDirectory() as folder:
        run_notebook(options.notebook, Path(folder))


if __name__ == "__main__":
    main()
