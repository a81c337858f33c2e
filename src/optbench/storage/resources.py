"""Find what ships with optbench (settings, sweeps, assets, its command) and hash weight files."""

from __future__ import annotations

import hashlib
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from optbench.errors import DamagedFileError
from optbench.storage.files import file_sha256 as hash_of
from optbench.storage.files import read_json, write_json

_PACKAGE = Path(__file__).resolve().parents[1]
_WEIGHT_SUFFIXES = (".safetensors", ".json", ".txt")
_FINGERPRINT_LENGTH = 16
_HASHES = "hashes"  # the one key of the cache of hashes
KOHYA_HASH_RANGE = slice(0x100000, 0x110000)  # the 64 KiB behind a file's first MiB


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


def sweep_names(command: str = "") -> tuple[str, ...]:
    """Return the names of the sweeps that ship for one of optbench's commands, sorted."""
    return tuple(name for name, owner in sweep_commands().items() if owner == command)


def sweep_commands() -> dict[str, str]:
    """Return which command each shipped sweep is for: "" trains, "resize" resizes.

    A sweep says so in a line of its own; one that names no command is a sweep of trainings.
    """
    found = sorted((resource_root() / "sweep").glob("*.yaml"))
    return {path.stem: _command_of(path) for path in found}


def _command_of(sweep: Path) -> str:
    mark = "# Command: python -m optbench "
    lines = sweep.read_text(encoding="utf-8").splitlines()
    return next((line.removeprefix(mark).strip() for line in lines if line.startswith(mark)), "")


def asset(name: str) -> Path:
    """Return the folder of an embedded asset, for instance `tiny` or `mirelle`."""
    return _PACKAGE / "assets" / name


def program() -> str:
    """Return how to start this very installation from a shell in the working directory.

    The script of this Python's environment: `.venv/bin/optbench` where that environment lies below
    the working directory, as `make` creates it in a checkout, `optbench` where the script is on
    the PATH, else its whole path. Without a script, `python -m optbench`.
    """
    script = Path(sys.prefix) / "bin" / "optbench"
    if not script.is_file():
        python = shutil.which("python")
        is_this_python = python is not None and Path(python) == Path(sys.executable)
        return f"{'python' if is_this_python else shlex.quote(sys.executable)} -m optbench"
    if script.is_relative_to(Path.cwd()):
        return shlex.quote(str(script.relative_to(Path.cwd())))
    on_path = shutil.which("optbench")
    if on_path is not None and Path(on_path).resolve() == script.resolve():
        return "optbench"  # a symbolic link, as pipx makes them, is the same script
    return shlex.quote(str(script))


def command_line(name: str, *arguments: str) -> str:
    """Return a command to be copied into a shell: this program, a command's name, its arguments.

    Args:
        name: `plan`, `report` and so on; "" or "train" for a training, which needs no name.
        *arguments: Each as it arrives in `sys.argv`; quoted here where a shell needs it.
    """
    words = [*([name] if name not in ("", "train") else []), *arguments]
    return f"{program()} {shlex.join(words)}".rstrip()


def folder_fingerprint(folder: Path, *, cache_dir: Path | None = None) -> str:
    """Return 16 hex digits that change with the name or bytes of any weight or config file.

    Only *.safetensors, *.json and *.txt count, at any depth. With `cache_dir`, files whose size
    and time of change are known are not read again.
    """
    files = sorted(
        path for path in folder.rglob("*") if path.suffix in _WEIGHT_SUFFIXES and path.is_file()
    )
    total = hashlib.sha256()
    for path, digest in _hashes(files, cache_dir).items():
        total.update(f"{path.relative_to(folder).as_posix()}\0{digest}\0".encode())
    return total.hexdigest()[:_FINGERPRINT_LENGTH]


def files_fingerprint(files: Sequence[Path], *, cache_dir: Path | None = None) -> str:
    """Return 16 hex digits that change with the bytes or the order of any of the files."""
    digests = _hashes(list(dict.fromkeys(files)), cache_dir)
    text = "".join(digests[path] for path in files)
    return hashlib.sha256(text.encode()).hexdigest()[:_FINGERPRINT_LENGTH]


def kohya_hash(content: bytes) -> str:
    """Return the eight hex digits that A1111 showed first, of a file's `KOHYA_HASH_RANGE`."""
    return hashlib.sha256(content).hexdigest()[:8]


def file_sha256(file: Path, *, cache_dir: Path | None = None) -> str:
    """Return a file's whole SHA-256, 64 hex digits; read once per size and time of change."""
    return _hashes([file], cache_dir)[file]


def file_hashes(files: Sequence[Path], *, cache_dir: Path | None = None) -> dict[Path, str]:
    """Return every file's whole SHA-256; each is read once per size and time of change."""
    return _hashes(list(dict.fromkeys(files)), cache_dir)


def _hashes(files: Sequence[Path], cache_dir: Path | None) -> dict[Path, str]:
    """Return every file's SHA-256; those known by size and time of change are not read again."""
    cache = None if cache_dir is None else cache_dir / "file-hashes.json"
    known = _read_hashes(cache)
    fresh: dict[str, str] = {}
    found: dict[Path, str] = {}
    for path in files:
        stat = path.stat()
        stamp = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
        found[path] = fresh[stamp] = known.get(stamp) or hash_of(path)
    if cache is not None and cache.parent.is_dir() and not fresh.keys() <= known.keys():
        write_json(cache, {_HASHES: {**known, **fresh}})
    return found


def _read_hashes(cache: Path | None) -> dict[str, str]:
    """Return what is known; a damaged cache is an empty one, because it can be made again.

    So is one without a checksum, of an older version: a wrong digit in it would rename every run.
    """
    if cache is None or not cache.is_file():
        return {}
    try:
        content = read_json(cache)
    except DamagedFileError:
        return {}
    hashes = content.get(_HASHES)
    return hashes if isinstance(hashes, dict) else {}
