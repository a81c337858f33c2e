"""Readers of captions and prompts take time in proportion to a text's length, whatever is in it.

Twice the letters may take three times as long, but not four: that is what a reader does that looks
at the rest of the text again at every letter. Times that nobody notices are not compared.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from optbench.cli.render import wildcards
from optbench.cli.render.axes import read_axis
from optbench.data.caption_files import read_captions
from optbench.data.captions import draw_caption, longest_forms
from optbench.data.layouts import Folder
from optbench.data.rules import Findings
from optbench.metrics.embedded import asked_for
from optbench.models.text import prompt_grammar
from optbench.render.text import cleaned
from tests.builders.dataset_options import PLAIN

_NUM_LETTERS = 10_000
_UNNOTICED_SECONDS = 0.05
_LARGEST_RATIO = 3.0

_TAGS = replace(
    PLAIN,
    shuffle_caption=True,
    keep_tokens_separator="|||",
    secondary_separator=";;;",
    enable_wildcard=True,
    caption_tag_dropout_rate=0.1,
)
_LISTS = {"a": ("b",)}


def _read_caption_file(text: str) -> None:
    image = Path("a.png")
    folder = Folder(
        path=Path(), repeats=1, class_words="x", images=(image,), captions={image: text}
    )
    read_captions(folder, PLAIN, Findings())


READERS: dict[str, Callable[[str], object]] = {
    "sections": prompt_grammar.read_sections,
    "steps": lambda text: prompt_grammar.at_steps(text, 2),
    "mistakes": prompt_grammar.mistakes,
    "loras": prompt_grammar.without_loras,
    "emphasized": prompt_grammar.emphasized,
    "balanced": prompt_grammar.is_balanced,
    "plain": prompt_grammar.reads_as_written,
    "caption": lambda text: draw_caption(text, _TAGS, seed=1, place=(1, "a", 0)),
    "longest": lambda text: longest_forms(text, _TAGS),
    "caption file": _read_caption_file,
    "wildcards": lambda text: wildcards.named_in(text, _LISTS),
    "range": lambda text: read_axis("x", {"seed": text}, []),
    "sheet": cleaned,
    "attributes": lambda text: asked_for(
        f"{text} red dress", {"outfit": ["dress"], "background": [], "outfit_color": ["red"]}
    ),
}
LETTERS = "()[]{}<>:|\\\\,._-+ \n1aA&;#'"
KNOWN = [
    ":" + "1" * 9,
    " ",
    "{a",
    "|",
    "[)",
    "<a:",
    "(a:1.1",
    "a ",
    "BREAK ",
    "AND",
    "__",
    "[a|b:1]",
]


def _seconds(read: Callable[[str], object], text: str) -> float:
    start = time.process_time()
    read(text)
    return time.process_time() - start


def _is_linear(read: Callable[[str], object], pattern: str, *, before: str = "") -> bool:
    short, long = (
        before + (pattern * (num // len(pattern) + 1))[:num]
        for num in (_NUM_LETTERS, 2 * _NUM_LETTERS)
    )
    for _ in range(3):  # a busy machine may spoil one measurement
        seconds = _seconds(read, short)
        if seconds < _UNNOTICED_SECONDS or _seconds(read, long) < _LARGEST_RATIO * seconds:
            return True
    return False


@pytest.mark.parametrize("reader", READERS)
def test_what_took_seconds_takes_none(reader: str) -> None:
    for pattern, before in itertools.product([*KNOWN, "1"], ["", ":", "{", "(", "[", "<", "_"]):
        assert _is_linear(READERS[reader], pattern, before=before), (before, pattern)


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_no_two_letters_repeated_make_a_reader_slow(reader: str) -> None:
    for pair in itertools.product(sorted(set(LETTERS)), repeat=2):
        assert _is_linear(READERS[reader], "".join(pair)), pair
