"""Write to the terminal: what others named is spelled out there, never obeyed as a code or markup.

Folders, captions, tensors and reasons come from anywhere, and an escape sequence in one of them
could move the cursor, hide lines or set the window's title.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

_WIDTH_WITHOUT_TERMINAL = 200  # a name cut at column 80 of a pipe could not be searched for
_CODES = (
    *(code for code in range(0x20) if chr(code) not in "\n\t"),
    *range(0x7F, 0xA0),
    0x061C,  # marks and overrides of the direction of writing, which make a name look like another
    *range(0x200E, 0x2010),
    *range(0x2028, 0x202F),
    *range(0x2066, 0x206A),
    0xFEFF,
    *range(0xD800, 0xE000),  # halves of characters: bytes of a file name that are no UTF-8
)
_SPELLED = {code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" for code in _CODES}


def printable(text: str) -> str:
    """Return a text with every character that a terminal would obey spelled as Python spells it."""
    return text.translate(_SPELLED)


class Terminal(Console):
    """A screen for texts of others: neither control characters nor markup, emoji, highlighting.

    Styles are given as `style=` or in a Text.
    """

    def __init__(self, *, is_error: bool) -> None:
        """Write to the standard error, whose lines the terminal wraps, or the standard output."""
        is_wide = not is_error and not sys.stdout.isatty()
        super().__init__(
            stderr=is_error,
            soft_wrap=True,
            markup=False,
            emoji=False,
            highlight=False,
            width=_WIDTH_WITHOUT_TERMINAL if is_wide else None,
        )

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Return what is written, with the control characters of texts spelled out."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text), style, control)


def output() -> Terminal:
    """Return the standard output, as wide as the terminal, or wide where there is none."""
    return Terminal(is_error=False)


def errors() -> Terminal:
    """Return the standard error for messages whose lines the terminal wraps."""
    return Terminal(is_error=True)


def say(text: object) -> None:
    """Print a line on the standard output: a result, to be read by people and programs."""
    print(printable(str(text)))  # noqa: T201 - the one place that prints


def tell(text: object) -> None:
    """Print a line on the standard error, for the person who watches; above a moving bar, too."""
    errors().print(str(text))


def link(path: Path) -> str:
    """Return a page's address, which a terminal makes a link of; its path where none reads it."""
    return path.resolve().as_uri() if sys.stdout.isatty() else str(path)


@contextlib.contextmanager
def working(what: str) -> Iterator[Callable[[str], None]]:
    """Show what takes the time until it is done; yields what shows the next part of it.

    On a terminal it is one line that moves and goes; elsewhere `what` is a line, and no part is.
    """
    console = errors()
    if not console.is_terminal:
        console.print(what)
        yield lambda part: None
        return
    with console.status(Text(f"{what} ...")) as status:
        yield lambda part: status.update(Text(f"{part} ..."))


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    """Hold back what libraries complain of while they are imported; show it if the import fails.

    Most of it is about parts that nobody here uses: bitsandbytes misses a kernel of 4-bit layers
    wherever diffusers imports it. Errors that a library logs are shown at once.
    """
    held: list[str] = []

    class Holding(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.ERROR:
                tell(record.getMessage())
            else:
                held.append(record.getMessage())

    root, handlers = logging.getLogger(), list(logging.getLogger().handlers)
    root.handlers = [Holding()]
    try:
        with warnings.catch_warnings(record=True) as caught:
            yield
    except BaseException:
        for text in (*held, *(str(warning.message) for warning in caught)):
            tell(text)
        raise
    finally:
        root.handlers = handlers
