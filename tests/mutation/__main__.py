"""Run the list of mutants against the tests: `python -m tests.mutation [PART OF A FILE'S NAME]`.

Each mutant is one text of one source file replaced by another, in a copy of the tree; the tests
named beside it must fail. Libraries are imported once and every mutant is tested in a fork. Prints
one line per mutant and a summary; exits with 1 where a mutant lives that is not listed as
equivalent.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.mutation.mutants import ROOT, Mutant, read_mutants

_LIBRARIES = "torch", "diffusers", "transformers", "accelerate", "pandas", "scipy", "pytest"
_SHARED = "conf", "sweep", "tools", "pyproject.toml", "Makefile", "README.md", "docs"


def main(arguments: list[str]) -> int:
    """Test the mutants whose file's name holds the argument; return the exit code."""
    mutants = [
        mutant
        for mutant in read_mutants()
        if not arguments or any(part in mutant.file for part in arguments)
    ]
    for library in _LIBRARIES:
        with contextlib.suppress(ImportError):
            __import__(library)
    results: Counter[str] = Counter()
    survivors = []
    # Tests that fail without a mutant would kill every one.
    for tests in dict.fromkeys(mutant.tests for mutant in mutants):
        if _fails(ROOT, tests):
            print(f"these tests fail on the code as it is: {' '.join(tests)}")
            return 1
    for number, mutant in enumerate(mutants, 1):
        started = time.monotonic()
        result = _result(mutant)
        results[result] += 1
        if result == "lives":
            survivors.append(mutant)
        seconds = time.monotonic() - started
        print(f"{number}/{len(mutants)} {result}: {mutant} ({seconds:.0f} s)", flush=True)
    print(", ".join(f"{number} {result}" for result, number in sorted(results.items())))
    for mutant in survivors:
        print(f"lives: {mutant}")
    return 1 if survivors else 0


def _result(mutant: Mutant) -> str:
    """Return `killed`, `lives`, or `equivalent`: listed as such, with the reason, and alive."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        ignored = shutil.ignore_patterns("__pycache__")
        for name in ("src", "tests"):
            shutil.copytree(ROOT / name, tree / name, ignore=ignored, symlinks=True)
        for name in _SHARED:
            (tree / name).symlink_to(ROOT / name)
        path = tree / mutant.file
        path.write_text(mutant.applied(path.read_text()))
        is_noticed = _fails(tree, mutant.tests)
    if is_noticed:
        return "killed"
    return "equivalent" if mutant.equivalent else "lives"


def _fails(tree: Path, tests: tuple[str, ...]) -> bool:
    """Return whether the tests fail in this tree; they run in a fork of this process."""
    child = os.fork()
    if child == 0:
        code = 2
        try:
            code = _run_tests(tree, tests)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0


def _run_tests(tree: Path, tests: tuple[str, ...]) -> int:
    import pytest

    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    os.chdir(tree)
    for name in [name for name in sys.modules if name.split(".")[0] in ("optbench", "tests")]:
        del sys.modules[name]
    sys.path[:0] = [str(tree / "src"), str(tree)]
    os.environ["PYTHONPATH"] = f"{tree / 'src'}:{tree}"
    options = ["-x", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", "--timeout", "600"]
    # Of the libraries that are imported already.
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    return int(pytest.main([*options, *tests]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
