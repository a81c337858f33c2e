"""Wildcards of a plot: their names, their files, and what is no wildcard."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from optbench.cli.render.wildcards import check_lists, drawn, named_in, put_in, read_lists
from optbench.errors import Problem

NAMES = ["colour", "hair colour", "색", "цвет волос", "hair/long hair", "a-b_c.2", "x's"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_may_be_words_of_any_script_and_lie_in_folders(tmp_path: Path, name: str) -> None:
    # As macOS writes names: syllables and accents taken apart.
    file = tmp_path / unicodedata.normalize("NFD", f"{name}.txt")
    file.parent.mkdir(exist_ok=True)
    file.write_text("\ufeffred\r\n\r\n# no value\r\n", encoding="utf-8")
    problems: list[Problem] = []
    lists = read_lists(None, str(tmp_path), problems)
    assert problems == []
    assert lists == {name: ("red",)}
    prompt = f"a __{name}__ dress, __{name}__"
    assert check_lists("prompt", prompt, lists) == []
    assert drawn(prompt, lists, seed=1) == "a red dress, red"
    assert put_in(prompt, {name: "blue"}) == "a blue dress, blue"


def test_names_in_the_settings_are_the_same_names() -> None:
    lists = read_lists({"hair colour": ["red"]}, None, [])
    assert drawn("__hair colour__ hair", lists, seed=1) == "red hair"


@pytest.mark.parametrize(
    "text", [">__<, smile, @__@", "a __ b __ c", "____", "______", "__ a__", "__a __", "__a\nb__"]
)
def test_faces_and_lone_underscores_are_letters(text: str) -> None:
    assert named_in(text, {}) == set()
    assert drawn(text, {}, seed=1) == text


def test_a_list_in_another_encoding_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("red", encoding="utf-16")
    problems: list[Problem] = []
    read_lists(None, str(tmp_path), problems)
    assert [problem.where for problem in problems] == [str(tmp_path / "a.txt")]
    assert "UTF-16" in problems[0].found
