"""Run the notebooks and store what they show: python -m tools.notebooks RUNS_FOLDER.

Notebooks look for ../runs/demo; RUNS_FOLDER is taken for that. Their outputs are kept small enough
for a repository: `make demo` has the numbers and the images that they show.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

_NUM_COLOURS = 48
NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def execute(path: Path) -> tuple[dict[str, Any], list[list[dict[str, Any]]]]:
    """Return a notebook's names after its last cell, and the outputs of every code cell.

    It runs in the current folder. As in Jupyter, a cell shows the value of its last expression.
    """
    names: dict[str, Any] = {}
    outputs = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse("".join(cell["source"]), filename=path.name)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        value, printed = None, io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(tree, path.name, "exec"), names)
            if isinstance(last, ast.Expr):
                value = eval(compile(ast.Expression(last.value), path.name, "eval"), names)
        of_cell: list[dict[str, Any]] = []
        if text := printed.getvalue():
            lines = text.splitlines(keepends=True)
            of_cell.append({"name": "stdout", "output_type": "stream", "text": lines})
        if data := shown(value):
            of_cell.append({"data": data, "metadata": {}, "output_type": "execute_result"})
        outputs.append(of_cell)
    return names, outputs


def shown(value: Any) -> dict[str, Any]:
    """Return a value as Jupyter stores it: as text, and as HTML or image where it has that."""
    if value is None:
        return {}
    data: dict[str, Any] = {"text/plain": repr(value).splitlines(keepends=True)}
    for method, kind in (("_repr_png_", "image/png"), ("_repr_jpeg_", "image/jpeg")):
        image = getattr(value, method)() if hasattr(value, method) else None
        if image is not None:
            return data | {kind: base64.b64encode(smaller(image)).decode("ascii")}
    html = value._repr_html_() if hasattr(value, "_repr_html_") else None
    return data | ({"text/html": html.splitlines(keepends=True)} if html else {})


def smaller(image: bytes) -> bytes:
    """Return an image with the colours that a chart needs; photographs stay as they are."""
    opened = Image.open(io.BytesIO(image))
    if opened.format != "PNG":
        return image
    data = io.BytesIO()
    opened.convert("RGB").quantize(_NUM_COLOURS).save(data, "PNG", optimize=True)
    return data.getvalue()


def store(path: Path) -> None:
    """Execute a notebook in the current folder and write its outputs into it."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    _, outputs = execute(path)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, (cell, output) in enumerate(zip(code, outputs, strict=True), start=1):
        cell["execution_count"] = number
        results = [part for part in output if part["output_type"] == "execute_result"]
        for part in results:
            part["execution_count"] = number
        cell["outputs"] = output
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    """Store the outputs of all notebooks for a sweep's folder."""
    sweep = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "runs").mkdir()
        (Path(folder) / "runs" / "demo").symlink_to(sweep)
        (Path(folder) / "notebooks").mkdir()
        os.chdir(Path(folder) / "notebooks")
        for path in sorted(NOTEBOOKS.glob("*.ipynb")):
            store(path)


if __name__ == "__main__":
    main()
