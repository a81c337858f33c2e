"""Put checksums into texts and check them: JSON objects, records of one line, whole texts.

Without input or output; `files` writes and reads what this makes.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import zlib
from collections.abc import Mapping
from typing import Any

from optbench.storage.nested import map_values

FILE_KEY = "sha256"  # last key of a JSON file, first comment of a text
LINE_KEY = "crc32"  # last key of a record
_LINE_END = re.compile(rb',"crc32":"([0-9a-f]{8})"\}')
_LINE_END_SHAPE = b',"crc32":"........"}'
_MIN_EQUAL_BYTES = 9  # of the 12 fixed ones of a line's end: then it was one, before it changed
_HEX_64 = re.compile(r"[0-9a-f]{64}")


def json_text(content: Mapping[str, Any]) -> str:
    """Return a JSON object with its checksum; numbers that are not finite become null."""
    plain = map_values(content, _as_json)
    with_checksum = {**plain, FILE_KEY: _json_checksum(plain)}
    return json.dumps(with_checksum, indent=2, allow_nan=False) + "\n"


def parse_json(text: str) -> dict[str, Any]:
    """Return a JSON object without its checksum; older versions wrote none.

    Raises:
        ValueError: If it is no JSON object, or not what was written; in words.
        RecursionError: If it is nested too deep.
    """
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"a JSON {type(content).__name__}")
    if not is_text(content):
        raise ValueError("half a character in a text")
    # A checksum whose key is corrupt is one all the same: its value still looks like it.
    last = next(reversed(content.values()), None)
    if FILE_KEY in content or (isinstance(last, str) and _HEX_64.fullmatch(last)):
        checksum = content.pop(FILE_KEY, None)
        if checksum != _json_checksum(content):
            raise ValueError("other content than was written")
    return content


def sealed(text: str) -> str:
    """Return a text under a first line with its checksum, a comment in YAML."""
    return f"{_seal(text)}\n{text}"


def unsealed(text: str) -> str:
    """Return a text without the line that has its checksum; older versions wrote none.

    Raises:
        ValueError: If it is another text than was written.
    """
    first, _, rest = text.partition("\n")
    if FILE_KEY not in first and not _HEX_64.search(first):
        return text
    if first != _seal(rest):
        raise ValueError("another text than was written")
    return rest


def line(row: Mapping[str, Any]) -> str:
    """Return a record as one line of JSON with its checksum."""
    # What was read with its checksum may be written again without a second one.
    plain = {name: value for name, value in map_values(row, _as_json).items() if name != LINE_KEY}
    text = json.dumps(plain, separators=(",", ":"), allow_nan=False)
    if not plain:
        return text + "\n"
    return f'{text[:-1]},"{LINE_KEY}":"{zlib.crc32(text.encode()):08x}"}}\n'


def has_right_checksum(record: bytes) -> bool:
    """Return whether a record, one line without its end, has a checksum; older versions wrote none.

    Raises:
        ValueError: If the checksum is another's.
    """
    body, end = record[: -len(_LINE_END_SHAPE)], record[-len(_LINE_END_SHAPE) :]
    if len(end) < len(_LINE_END_SHAPE):
        return False
    match = _LINE_END.fullmatch(end)
    if match is not None and int(match[1], 16) == zlib.crc32(body + b"}"):
        return True
    pairs = zip(end, _LINE_END_SHAPE, strict=True)
    if sum(byte == fixed for byte, fixed in pairs if fixed != ord(".")) >= _MIN_EQUAL_BYTES:
        raise ValueError("another record than was written")
    return False


def is_text(content: object) -> bool:
    """Return whether all text in plain values can be written down: no half of a surrogate pair.

    JSON and YAML can spell such halves, and every table and page would stumble over them.
    """
    try:
        json.dumps(content, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        return False
    return True


def _seal(text: str) -> str:
    return f"# {FILE_KEY} of what follows: {hashlib.sha256(text.encode()).hexdigest()}"


def _json_checksum(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _as_json(value: Any) -> Any:
    """Return a value as our JSON files hold it: no infinity, no half of a surrogate pair."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str) and not value.isascii():
        return value.encode(errors="replace").decode()
    return value
