"""The header of a safetensors file: every tensor's name, shape and place, without its numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MALFORMED = (ValueError, RecursionError, OverflowError)  # nested too deep, or infinity
_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000
_ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """One tensor of a file."""

    dtype: str  # as the format spells it: F32, F16, BF16 ...
    shape: tuple[int, ...]
    start: int  # its first byte, counted from the beginning of the file
    num_bytes: int


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Return every tensor of a safetensors file by its name.

    Raises:
        OSError: If the file cannot be opened.
        ValueError: If it is no safetensors file or ends too early; says which.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        if size < _LENGTH_BYTES or length > min(size - _LENGTH_BYTES, _MAX_HEADER_BYTES):
            raise ValueError("no safetensors file, or only the beginning of one")
        text = stream.read(length)
    try:
        header = json.loads(text)
        start = _LENGTH_BYTES + length
        entries = {
            str(name): _entry(entry, start)
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (*_MALFORMED, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no safetensors file ({type(error).__name__} in its header)") from error
    end = max((one.start + one.num_bytes for one in entries.values()), default=start)
    if end > size:
        raise ValueError(f"a file of {size} bytes that should have {end}: it was cut short")
    return entries


def _entry(entry: Mapping[str, Any], start: int) -> TensorEntry:
    dtype = str(entry["dtype"])
    first, last = (int(one) for one in entry["data_offsets"])
    sides = tuple(int(side) for side in entry["shape"])
    if first < 0 or math.prod(sides) * _ITEM_BYTES.get(dtype, 0) not in (0, last - first):
        raise ValueError("offsets that do not fit the shapes")
    return TensorEntry(dtype=dtype, shape=sides, start=start + first, num_bytes=last - first)
