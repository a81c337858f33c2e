"""The rules of the code that no tool checks: ranks, sizes, names, ASCII, cheap imports."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "optbench"
SOURCES = sorted(PACKAGE.rglob("*.py"))
TEXTS = [
    *SOURCES,
    *sorted((ROOT / "tests").rglob("*.py")),
    *sorted((ROOT / "conf").rglob("*.yaml")),
    *sorted((ROOT / "sweep").glob("*.yaml")),
]
MAX_FUNCTION_LINES = 60
MAX_MODULE_LINES = 400

# A module may import from a lower line only; from its own line only inside one package.
RANKS = (
    ("errors", "__init__"),
    (
        "records",
        "contracts",
        "options",
        "rng",
        "allocator",
        "samplers",
        "prompt_grammar",
        "processes",
        "stopping",
    ),
    ("claims",),
    ("files",),
    ("paths",),
    (
        "recipes",
        "schedules",
        "blocks",
        "foreign",
        "lora",
        "lowrank",
        "lora_layout",
        "telemetry",
        "stepping",
        "rundir",
        "lettering",
        "loss",
        "noise",
        "captions",
        "encoded_captions",
        "lookahead",
        "augmentation",
        "basefiles",
        "stats",
    ),
    ("sizes", "scores", "stored", "thumbnails"),
    (
        "continuing",
        "dataset",
        "bases",
        "latents",
        "network",
        "optimizers",
        "train",
        "validate",
        "checkpoint",
        "metadata",
        "render",
        "provenance",
        "devices",
        "grid",
        "batches",
        "curves",
        "progress",
        "resume",
        "objective",
        "outcomes",
        "undone",
        "folders",
    ),
    (
        "results",
        "strangers",
        "checks",
        "loss_checks",
        "refusals",
        "pictures",
        "notices",
        "placing",
        "adapters",
        "likeness",
        "offered",
        "fitting",
    ),
    ("metrics", "trackers"),
    ("warmstart", "sections", "mending", "loading", "midway", "tuning"),
    ("report", "config", "testing", "validation"),
    ("identity", "conformance", "expansion", "launching"),
    ("saving",),
    ("pipeline", "tiny", "composition", "cost", "apart"),
    ("launch", "recipe_files"),
    ("doctor", "verify"),
    ("plan", "resize", "kohya", "regularize"),
    ("plots",),
    ("cli", "worker"),
    ("__main__",),
)
RANK = {name: number for number, line in enumerate(RANKS) for name in line}
WITHOUT_TORCH = (
    "basefiles.checking",
    "basefiles.reading",
    "cli",
    "continuing",
    "expansion",
    "config",
    "composition",
    "doctor",
    "recipe_files",
    "identity",
    "launch",
    "plan",
    "claims",
    "apart",
    "launching",
    "objective",
    "outcomes",
    "worker",
    "undone",
    "folders",
    "stopping",
    "rundir",
    "results",
    "report",
    "stats",
    "scores",
    "grid",
    "thumbnails",
    "provenance",
    "dataset",
    "recipes",
    "schedules",
    "loss_checks",
    "metrics",
    "metrics.building",
    "metrics.embedded",
    "metrics.sweeps",
    "trackers",
    "prompt_grammar",
    "samplers",
    "render",
    "plots.asking",
    "files",
    "stored",
    "strangers",
    "verify",
)
FORBIDDEN_WORDS = re.compile(
    r"(^|_)(utils?|helpers?|common|managers?|handlers?|processors?|engines?|misc)(_|$)"
)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def unit(module: str) -> str:
    """Return the part of a dotted name that has a rank: optbench.bases.sdxl -> bases."""
    return (module.split(".") + ["__init__"])[1]


def imported_units(path: Path) -> Iterator[tuple[int, str]]:
    """Return line and unit of every import of ours, except those for type checkers only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "optbench":
            names = [f"optbench.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        for name in names:
            if name == "optbench" or name.startswith("optbench."):
                yield node.lineno, unit(name)


def violations(path: Path) -> list[str]:
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if path.name == "__main__.py" and path.parent != PACKAGE:
        return []  # a command line of its package: imports what it starts
    found = []
    for line, other in imported_units(path):
        if other == own and path.parent != PACKAGE:
            continue
        if own == "__init__":
            continue  # the public door; it imports inside functions
        if RANK[other] >= RANK[own]:
            found.append(
                f"{relative(path)}:{line}: {own} (rank {RANK[own]}) imports {other} "
                f"(rank {RANK[other]})"
            )
    return found


def test_every_module_has_a_rank() -> None:
    unranked = {
        path.relative_to(PACKAGE).with_suffix("").parts[0] for path in SOURCES
    } - RANK.keys()
    assert not unranked, f"give these a line in RANKS: {sorted(unranked)}"


def test_modules_import_from_lower_ranks_only() -> None:
    found = [line for path in SOURCES for line in violations(path)]
    assert not found, "\n".join(found)


def test_the_rank_check_sees_an_upward_import(tmp_path: Path) -> None:
    upward = tmp_path / "upward.py"
    upward.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from optbench.cli import main\n"
        "def later():\n    from optbench import pipeline\n    import optbench.report.page\n"
    )
    assert list(imported_units(upward)) == [(5, "pipeline"), (6, "report")]


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_functions_and_modules_are_small_enough_to_see(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    found = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    if text.count("\n") > MAX_MODULE_LINES:
        found.append(f"the module: {text.count(chr(10))} lines")
    assert not found, found


@pytest.mark.parametrize("path", TEXTS, ids=relative)
def test_files_are_ascii(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [number for number, line in enumerate(lines, start=1) if not line.isascii()]
    assert not found, f"lines {found}"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_names_say_something(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {path.stem}
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
    snake = {name: re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower() for name in names}
    found = sorted(name for name, spelled in snake.items() if FORBIDDEN_WORDS.search(spelled))
    assert not found, found


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_exceptions_are_swallowed_at_the_run_boundary_only(path: Path) -> None:
    found = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or re.search(r"\b(Base)?Exception\b", ast.unparse(node.type)))
    ]
    # The second is for trackers and metrics: code of others that looks on.
    places = (PACKAGE / "launch.py", PACKAGE / "foreign.py")
    assert len(found) == (1 if path in places else 0), f"lines {found}"


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_importing_it_does_not_import_torch(name: str) -> None:
    code = f"import sys, optbench.{name}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=_environment(), check=False)
    assert done.returncode == 0


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / "src")}
