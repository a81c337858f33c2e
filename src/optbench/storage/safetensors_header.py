"""Read the header of a safetensors file: its metadata, and every tensor's dtype, shape and place.

Torch-free and bounded: no number of a tensor is read, and no header above the format's 100 MB.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optbench.storage.disk import open_regular
from optbench.storage.mistaken import HEAD_BYTES, mistaken_for

NUM_LENGTH_BYTES = 8  # a file opens with the length of its header
_MAX_HEADER_BYTES = 100_000_000
_METADATA = "__metadata__"
# The format's dtypes: bytes of one number, and torch's name. Of others only the offsets are known.
_DTYPES = {
    "F64": (8, "float64"),
    "F32": (4, "float32"),
    "F16": (2, "float16"),
    "BF16": (2, "bfloat16"),
    "I64": (8, "int64"),
    "I32": (4, "int32"),
    "I16": (2, "int16"),
    "I8": (1, "int8"),
    "U8": (1, "uint8"),
    "BOOL": (1, "bool"),
    "F8_E4M3": (1, "float8_e4m3fn"),
    "F8_E5M2": (1, "float8_e5m2"),
}
TORCH_NAMES: Mapping[str, str] = {dtype: name for dtype, (_, name) in _DTYPES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """One tensor of a file."""

    dtype: str  # as the format spells it: F32, F16, BF16 ...
    shape: tuple[int, ...]
    start: int  # its first byte, counted from the beginning of the file
    num_bytes: int
    offsets: tuple[int, int]  # its first byte and the one behind its last, counted as headers do


@dataclass(frozen=True, slots=True, kw_only=True)
class SafetensorsHeader:
    """All that a file says of its tensors."""

    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorEntry]  # by name, sorted
    data_start: int  # of the first tensor's bytes, counted from the beginning of the file

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's shape by its name."""
        return {name: entry.shape for name, entry in self.tensors.items()}


def read_header(path: Path) -> SafetensorsHeader:
    """Return the header of a file that is as long as its header says.

    Raises:
        OSError: If the file cannot be opened.
        ValueError: If it is no safetensors file or was cut short; names the tensor in which a
            file that was cut short ends.
    """
    size = path.stat().st_size
    with open_regular(path) as stream:
        start = stream.read(HEAD_BYTES)
        length = int.from_bytes(start[:NUM_LENGTH_BYTES], "little")
        if length <= _MAX_HEADER_BYTES:
            start += stream.read(max(0, NUM_LENGTH_BYTES + length - len(start)))
    return parse_header(start, size=size)


def parse_header(start: bytes, *, size: int) -> SafetensorsHeader:
    """Return the header of a file from its first bytes, of which it takes what it needs.

    Args:
        start: The file's beginning, or all of it.
        size: The whole file's, bytes.

    Raises:
        ValueError: As `read_header`.
    """
    if mistaken := mistaken_for(start):
        raise ValueError(mistaken)
    length = int.from_bytes(start[:NUM_LENGTH_BYTES], "little")
    data_start = NUM_LENGTH_BYTES + length
    text = start[NUM_LENGTH_BYTES:data_start]
    if size < NUM_LENGTH_BYTES:
        raise ValueError("no safetensors file, or only the beginning of one")
    if length > _MAX_HEADER_BYTES or not text.startswith(b"{"):
        raise ValueError("no safetensors file")
    if size < data_start:
        raise ValueError("a file that ends inside its header: it was cut short")
    try:
        header = json.loads(text)
        tensors = {
            str(name): _entry(entry, data_start)
            for name, entry in sorted(header.items())
            if name != _METADATA
        }
        metadata = {str(key): str(text) for key, text in (header.get(_METADATA) or {}).items()}
    # Also nested too deep, infinite, or of other types than the format's.
    except (ValueError, RecursionError, OverflowError, LookupError, TypeError, AttributeError) as e:
        raise ValueError(f"no safetensors file ({type(e).__name__} in its header)") from e
    places = sorted((entry.start, entry.num_bytes, name) for name, entry in tensors.items())
    end = data_start
    for first, num_bytes, _ in places:
        if first != end:
            raise ValueError("no safetensors file: its tensors do not follow one another")
        end += num_bytes
    if end > size:
        cut = next(name for first, num_bytes, name in places if first + num_bytes > size)
        present = f"({size:,} of {end:,} bytes are there)"
        raise ValueError(f"a file that ends inside {cut} {present}: it was cut short")
    if end < size:
        raise ValueError(f"no safetensors file: {size - end:,} bytes after its last tensor")
    return SafetensorsHeader(metadata=metadata, tensors=tensors, data_start=data_start)


def _entry(entry: Mapping[str, Any], data_start: int) -> TensorEntry:
    dtype = str(entry["dtype"])
    first, last = (int(offset) for offset in entry["data_offsets"])
    sides = tuple(int(side) for side in entry["shape"])
    if first < 0 or last < first or min(sides, default=0) < 0:
        raise ValueError("offsets or sides below 0")
    if dtype in _DTYPES and math.prod(sides) * _DTYPES[dtype][0] != last - first:
        raise ValueError("offsets that do not fit the shape")
    return TensorEntry(
        dtype=dtype,
        shape=sides,
        start=data_start + first,
        num_bytes=last - first,
        offsets=(first, last),
    )
