"""Fingerprint the source of a class that comes from no installed package.

An installed package has a version, which provenance records. A file of one's own has none, and is
edited between two runs: its bytes, and those of every such file it imports, say which one was used.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.machinery
import importlib.util
import site
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

_NUM_DIGITS = 16
_OURS = "optbench"  # its version and commit are recorded
_INSTALLED_IN = frozenset({"site-packages", "dist-packages"})


def source_fingerprint(target: str) -> str | None:
    """Return 16 hex digits of the files behind a dotted path; None for an installed package.

    Nothing is imported or run: files are found as `import` would find them, and those that they
    import are read from their syntax. A module that is not there has no files.
    """
    total = hashlib.sha256()
    files = _own_files(target)
    for name, file in sorted(files.items()):
        total.update(f"{name}\0".encode())
        total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()[:_NUM_DIGITS] if files else None


def _own_files(target: str) -> dict[str, Path]:
    """Return the files that importing a dotted path would run and that no package installed."""
    files: dict[str, Path] = {}
    waiting = [target]
    while waiting:
        for name, file in _modules(waiting.pop()):
            if name not in files:
                files[name] = file
                waiting += _imports(name, file)
    return files


def _modules(dotted: str) -> Iterator[tuple[str, Path]]:
    """Yield the modules on the way to a dotted name, as far as they are files of one's own."""
    root, *rest = dotted.split(".")
    if not root or root == _OURS or root in sys.stdlib_module_names:
        return
    try:
        spec = importlib.util.find_spec(root)  # of a first word: imports nothing
    except (ImportError, ValueError):
        return
    name = root
    while spec is not None:
        if spec.origin is not None and spec.has_location:
            file = Path(spec.origin)
            if _is_installed(file) or not file.is_file():
                return
            yield name, file
        places = spec.submodule_search_locations
        if not rest or places is None:
            return
        name = f"{name}.{rest.pop(0)}"
        try:
            spec = importlib.machinery.PathFinder.find_spec(name, list(places))
        except (ImportError, KeyError):  # KeyError: inside a package without an __init__.py
            return


def _imports(name: str, file: Path) -> Iterator[str]:
    """Yield the dotted names that a module's source imports; none of a compiled one."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - (node.level - 1)]
            words = [*(parents if node.level else []), *filter(None, [node.module])]
            # What is imported may be a module itself.
            yield from (".".join([*words, alias.name]) for alias in node.names)


def _is_installed(file: Path) -> bool:
    resolved = file.resolve()
    # Another environment's packages, which a .pth file may name, are installed as well.
    if _INSTALLED_IN.intersection(resolved.parts):
        return True
    return any(resolved.is_relative_to(place) for place in _package_folders())


@functools.cache
def _package_folders() -> tuple[Path, ...]:
    """Return where packages and Python's own library are installed."""
    paths = [sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib", "platstdlib")]
    paths += [*site.getsitepackages(), site.getusersitepackages()]
    return tuple({Path(path).resolve() for path in paths if path})
