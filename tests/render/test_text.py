"""Text in sheets: every script in a font that has it, wrapped, and nothing hidden."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from optbench.render import text as sheet_text
from optbench.render.notices import font_notices

# Spelled by number, for sources are ASCII: "girl, flower field" in Japanese and Chinese; Arabic.
JAPANESE = "\u82b1\u7551\u3067\u8e0a\u308b\u5c11\u5973"
CHINESE = "\u5c11\u5973\u5728\u82b1\u7530\u91cc\u8df3\u821e"
ARABIC = "\u0645\u0631\u062d\u0628\u0627 \u0628\u0643"
has_cjk = not sheet_text.without_font([JAPANESE, CHINESE])
needs_cjk = pytest.mark.skipif(
    not has_cjk, reason="no font with Han and kana here; Debian has one in fonts-wqy-microhei"
)


def drawn(text: str, size: int = 20) -> Image.Image:
    image = Image.new("L", (400, 40), 255)
    sheet_text.write(ImageDraw.Draw(image), [text], (4, 4), size=size, fill="#000000")
    return image


@pytest.fixture
def no_system_fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    caches = (sheet_text._files, sheet_text._file_for, sheet_text._parts)

    def forget() -> None:
        for one in caches:
            one.cache_clear()

    forget()
    monkeypatch.setattr(sheet_text, "_PLACES", ())
    yield
    forget()


def test_latin_letters_are_in_pillows_own_font() -> None:
    plain = Image.new("L", (400, 40), 255)
    font: Any = ImageFont.load_default(20)
    ImageDraw.Draw(plain).text((4, 4), "lion, dim 16", font=font, fill="#000000")
    assert drawn("lion, dim 16").tobytes() == plain.tobytes()


@needs_cjk
@pytest.mark.parametrize("text", [JAPANESE, CHINESE])
def test_each_letter_of_chinese_and_japanese_looks_its_own(text: str) -> None:
    pictures = {letter: drawn(letter).tobytes() for letter in text}
    assert len(set(pictures.values())) == len(pictures)
    assert drawn(text).tobytes() != drawn(text[::-1]).tobytes()


@needs_cjk
def test_scripts_stand_side_by_side_in_one_line() -> None:
    mixed = f"lion {JAPANESE} dim"
    assert len(sheet_text._parts(mixed)) == 3
    parts = ("lion ", JAPANESE, " dim")
    # The spaces around stand in one of the fonts or the other.
    whole = sum(sheet_text.length(part, 20) for part in parts)
    assert sheet_text.length(mixed, 20) == pytest.approx(whole, abs=8)


@pytest.mark.usefixtures("no_system_fonts")
def test_letters_that_no_font_has_are_told() -> None:
    assert sheet_text.without_font(["a", JAPANESE + JAPANESE]) == JAPANESE
    (notice,) = font_notices(["1girl", JAPANESE])
    assert JAPANESE[0] in notice
    assert "fonts-noto-cjk" in notice
    assert list(font_notices(["1girl, (dress:1.2) \n\t"])) == []
    drawn(JAPANESE)  # boxes, and no error


def test_right_to_left_stays_in_one_piece() -> None:
    if sheet_text.without_font([ARABIC]):
        pytest.skip("no font with Arabic here; Debian has one in fonts-dejavu-core")
    assert len(sheet_text._parts(f"{ARABIC} lion")) == 1
    assert drawn(ARABIC).getbbox() is not None


@pytest.mark.usefixtures("no_system_fonts")
def test_files_that_are_no_fonts_are_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "wqy-no-font.ttc").write_bytes(b"no font")
    monkeypatch.setattr(sheet_text, "_PLACES", (str(tmp_path),))
    assert sheet_text.without_font([JAPANESE]) == JAPANESE


def test_controls_and_marks_of_direction_are_taken_out() -> None:
    assert sheet_text.cleaned("a\0b\u202ec\u2066d\ue000\ud800\n") == "a bcd\ue000  "
    drawn("a\0b\ud800")


def test_lines_end_behind_words_and_behind_any_letter_of_han() -> None:
    lines = sheet_text.wrap("one two three four", 20, 80)
    assert " ".join(lines) == "one two three four"
    assert len(lines) > 1
    lines = sheet_text.wrap(JAPANESE * 5, 20, 100)
    assert "".join(lines) == JAPANESE * 5
    assert len(lines) > 2
    assert sheet_text.wrap("", 20, 100) == ()


def test_a_long_setting_is_cut_where_its_words_meet() -> None:
    lines = sheet_text.wrap("network.rank_dropout=0.1 lion", 20, 150)
    assert lines[0] in ("network.", "network.rank_")
    assert "".join(lines).startswith("network.rank_dropout=0.1")
    # A seam near the beginning would leave a line all but empty.
    assert sheet_text.wrap("a-" + "b" * 40, 20, 150)[0] != "a-"


def test_a_hostile_length_ends_in_dots() -> None:
    lines = sheet_text.wrap("looong " * 2000, 17, 500, max_lines=20)
    assert len(lines) == 20
    assert lines[-1].endswith(" ...")
    assert sheet_text.wrap("a b", 17, 500, max_lines=1) == ("a b",)


@given(st.text(st.characters(codec="ascii"), max_size=80), st.integers(30, 200))
def test_no_line_is_wider_than_asked(text: str, width: int) -> None:
    lines = sheet_text.wrap(text, 17, width)
    assert all(sheet_text.length(line, 17) <= width for line in lines)
    assert "".join("".join(lines).split()) == "".join(sheet_text.cleaned(text).split())
