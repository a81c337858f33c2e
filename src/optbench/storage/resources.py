"""Find what ships with optbench: settings, sweeps, assets, and the command that starts it."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def resource_root(package: Path = _PACKAGE) -> Path:
    """Return the folder that holds conf/ and sweep/: the package in a wheel, else the checkout.

    Raises:
        FileNotFoundError: If neither place holds conf/config.yaml; names both.
    """
    places = (package, package.parent.parent)
    for place in places:
        if (place / "conf" / "config.yaml").is_file():
            return place
    tried = " nor ".join(str(place / "conf" / "config.yaml") for place in places)
    raise FileNotFoundError(f"optbench is not installed whole: neither {tried} exists")


def conf_dir() -> Path:
    """Return the folder of the config groups."""
    return resource_root() / "conf"


def primary_configs() -> tuple[str, ...]:
    """Return the names of the files that commands begin with, which no one may replace."""
    return tuple(sorted(file.stem for file in conf_dir().glob("*.yaml")))


def sweep_names(command: str = "") -> tuple[str, ...]:
    """Return the names of the sweeps that ship for one of optbench's commands, sorted."""
    return tuple(name for name, owner in sweep_commands().items() if owner == command)


def sweep_commands() -> dict[str, str]:
    """Return which command each shipped sweep is for: "" trains, "resize" resizes.

    A sweep says so in a line of its own; one that names no command is a sweep of trainings.
    """
    mark = "# Command: optbench "
    commands = {}
    for sweep in sorted((resource_root() / "sweep").glob("*.yaml")):
        lines = sweep.read_text(encoding="utf-8").splitlines()
        marked = (line.removeprefix(mark).strip() for line in lines if line.startswith(mark))
        commands[sweep.stem] = next(marked, "")
    return commands


def asset(name: str) -> Path:
    """Return the folder of an embedded asset, for instance `tiny` or `mirelle`."""
    return _PACKAGE / "assets" / name


def program() -> str:
    """Return how to start this very installation from a shell in the working directory.

    The script of this Python's environment: `.venv/bin/optbench` where that environment lies below
    the working directory, as `make` creates it in a checkout, `optbench` where the script is on
    the PATH, else its whole path, which begins with `~` below the home folder: what is printed may
    be shown to others. Without a script, `python -m optbench`.
    """
    script = Path(sys.prefix) / "bin" / "optbench"
    if not script.is_file():
        python = shutil.which("python")
        is_this_python = python is not None and Path(python) == Path(sys.executable)
        return f"{'python' if is_this_python else _typed(Path(sys.executable))} -m optbench"
    if script.is_relative_to(Path.cwd()):
        return shlex.quote(str(script.relative_to(Path.cwd())))
    on_path = shutil.which("optbench")
    if on_path is not None and Path(on_path).resolve() == script.resolve():
        return "optbench"  # a symbolic link, as pipx makes them, is the same script
    return _typed(script)


def _typed(path: Path) -> str:
    """Return a path for a shell, quoted but for the `~` that stands for the home folder."""
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 - an unknown home is "~" and no error
    if home != Path("/") and path.is_relative_to(home):
        return f"~/{shlex.quote(str(path.relative_to(home)))}"
    return shlex.quote(str(path))


def command_line(name: str, *arguments: str) -> str:
    """Return a command to be copied into a shell: this program, a command's name, its arguments.

    Args:
        name: `plan`, `report` and so on; "" or "train" for a training, which needs no name.
        *arguments: Each as it arrives in `sys.argv`; quoted here where a shell needs it.
    """
    words = [*([name] if name not in ("", "train") else []), *arguments]
    return f"{program()} {shlex.join(words)}".rstrip()
