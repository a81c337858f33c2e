"""Read a text file of a person's: a byte order mark is no letter, another encoding has a name."""

from __future__ import annotations

import codecs
from pathlib import Path

from optbench.storage.disk import read_bytes

# The longer ones first: UTF-32's begins like UTF-16's.
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16, which Notepad calls Unicode"),
    (codecs.BOM_UTF16_BE, "UTF-16, which Notepad calls Unicode"),
)


def read_text(path: Path) -> str:
    """Return a file's text, without a mark before it and with "\\n" at the end of its lines.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no text in UTF-8; says what it is instead, as far as that shows.
    """
    content = read_bytes(path)
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            raise ValueError(f"a text in {encoding}")
    if b"\0" in content:
        is_wide = content[1::2].count(0) * 2 >= len(content) // 2
        raise ValueError("a text in UTF-16" if is_wide else "bytes that are no text")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"a text in another encoding than UTF-8 (byte {error.start} is "
            f"{content[error.start]:#04x}), perhaps Windows-1252, Shift-JIS or GBK"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")
