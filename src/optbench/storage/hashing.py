"""Hash files and settings; whole files are hashed once per size and time of change."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optbench.errors import DamagedFileError
from optbench.storage.disk import open_regular
from optbench.storage.files import read_json, write_json
from optbench.storage.nested import map_values

KOHYA_HASH_RANGE = slice(0x100000, 0x110000)  # the 64 KiB behind a file's first MiB

_NUM_DIGITS = 16  # of a fingerprint
_WEIGHT_SUFFIXES = (".safetensors", ".json", ".txt")
_CACHE_NAME = "file-hashes.json"
_HASHES = "hashes"  # the cache's one key


def fingerprint(content: Mapping[str, Any]) -> str:
    """Return 16 hex digits of a mapping's content, whatever the order of its keys.

    Infinity counts as the word for it: recipes may say .inf, JSON cannot.
    """

    def with_word_for_infinity(value: Any) -> Any:
        return repr(value) if isinstance(value, float) and not math.isfinite(value) else value

    plain = map_values(content, with_word_for_infinity)
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:_NUM_DIGITS]


def folder_fingerprint(folder: Path, *, cache_dir: Path | None = None) -> str:
    """Return 16 hex digits that change with the name or bytes of any weight or config file.

    Only *.safetensors, *.json and *.txt count, at any depth.
    """
    files = sorted(
        path for path in folder.rglob("*") if path.suffix in _WEIGHT_SUFFIXES and path.is_file()
    )
    total = hashlib.sha256()
    for path, digest in file_hashes(files, cache_dir=cache_dir).items():
        total.update(f"{path.relative_to(folder).as_posix()}\0{digest}\0".encode())
    return total.hexdigest()[:_NUM_DIGITS]


def files_fingerprint(files: Sequence[Path], *, cache_dir: Path | None = None) -> str:
    """Return 16 hex digits that change with the bytes or the order of any of the files."""
    digests = file_hashes(files, cache_dir=cache_dir)
    text = "".join(digests[path] for path in files)
    return hashlib.sha256(text.encode()).hexdigest()[:_NUM_DIGITS]


def file_sha256(file: Path, *, cache_dir: Path | None = None) -> str:
    """Return a file's SHA-256, 64 hex digits; read anew unless `cache_dir` is given."""
    return file_hashes([file], cache_dir=cache_dir)[file]


def file_hashes(files: Sequence[Path], *, cache_dir: Path | None = None) -> dict[Path, str]:
    """Return every file's SHA-256, 64 hex digits.

    With `cache_dir`, files whose size and times of change are known are not read again. The second
    time is that of the entry in its folder: a file copied over another with its old date is read.
    """
    cache = None if cache_dir is None else cache_dir / _CACHE_NAME
    known = {} if cache is None else _read_cache(cache)
    fresh: dict[str, str] = {}
    digests: dict[Path, str] = {}
    for path in dict.fromkeys(files):
        stat = path.stat()
        stamp = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}"
        digests[path] = fresh[stamp] = known.get(stamp) or _read_sha256(path)
    if cache is not None and cache.parent.is_dir() and not fresh.keys() <= known.keys():
        write_json(cache, {_HASHES: {**known, **fresh}})
    return digests


def kohya_hash(content: bytes) -> str:
    """Return the eight hex digits that A1111 showed first, of a file's `KOHYA_HASH_RANGE`."""
    return hashlib.sha256(content).hexdigest()[:8]


def _read_sha256(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_cache(cache: Path) -> dict[str, str]:
    """Return the hashes by path, size and time; none from a corrupt cache, which is made again.

    Nor from one without a checksum, of an older version: a wrong digit would rename every run.
    """
    try:
        hashes = read_json(cache).get(_HASHES)
    except DamagedFileError:
        return {}
    return hashes if isinstance(hashes, dict) else {}
