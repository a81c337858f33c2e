"""Rendering: batches of the wanted cells, A1111's text, and PNG files that carry it."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from optbench.contracts import BaseModel, SampleRequest
from optbench.models.text.clip import ClipTextOptions
from optbench.models.text.prompt_grammar import LoraTag
from optbench.records import Cell
from optbench.render.prompts import (
    OomSafeSampler,
    Origin,
    cells_of,
    parameters_text,
    png_bytes,
    render_prompts,
)
from optbench.schema import Prompt, RenderOptions

OPTIONS = RenderOptions(
    enabled=True,
    seeds=(1, 2, 3, 4, 2**64 - 1),
    cfg_scale=7.0,
    steps=24,
    sampler="Euler a",
    batch_size=2,
    sheet_format="png",
)
TALL = Prompt(name="tall", text="mirelle, 1girl", negative="blurry", width=64, height=96)
WIDE = Prompt(name="wide", text="a (red:1.2) dress", negative="", width=96, height=64)
CELL = Cell(prompt="tall", width=512, height=768, seed=112233, epoch=3)


class FakeBase:
    """A base that keeps what it was asked for and answers with one colour per seed."""

    def __init__(self) -> None:
        self.requests: list[SampleRequest] = []

    def sample(self, request: SampleRequest) -> list[Image.Image]:
        self.requests.append(request)
        size = (request.width, request.height)
        return [Image.new("RGB", size, (seed % 256, 0, 0)) for seed in request.seeds]


def render(
    base: FakeBase, *, wanted: Sequence[int] = OPTIONS.seeds, **changes: Any
) -> list[tuple[Cell, Prompt, Image.Image]]:
    drawn = render_prompts(
        cast(BaseModel, base),
        (TALL, WIDE),
        replace(OPTIONS, **changes),
        epoch=3,
        text_options=ClipTextOptions(clip_skip=2),
        is_wanted=lambda cell: cell.seed in wanted,
    )
    return list(drawn)


# --- cells and batches ---


def test_a_prompt_has_a_cell_per_seed() -> None:
    cells = cells_of(WIDE, OPTIONS, epoch=4)
    assert [cell.seed for cell in cells] == list(OPTIONS.seeds)
    assert {replace(cell, seed=0) for cell in cells} == {
        Cell(prompt="wide", width=96, height=64, seed=0, epoch=4)
    }
    assert cells[-1].file_name == "wide-96x64-s18446744073709551615.png"


def test_every_cell_comes_with_its_own_prompt_and_picture() -> None:
    drawn = render(FakeBase())
    assert [cell for cell, _, _ in drawn] == [
        *cells_of(TALL, OPTIONS, epoch=3),
        *cells_of(WIDE, OPTIONS, epoch=3),
    ]
    for cell, prompt, image in drawn:
        assert cell.prompt == prompt.name
        assert image.size == (cell.width, cell.height)
        assert image.getpixel((0, 0)) == (cell.seed % 256, 0, 0)


@pytest.mark.parametrize(
    ("batch_size", "expected"),
    [(1, [1] * 5), (2, [2, 2, 1]), (5, [5]), (64, [5])],
)
def test_batches_hold_one_prompt_and_no_more_seeds_than_asked(
    batch_size: int, expected: list[int]
) -> None:
    base = FakeBase()
    render(base, batch_size=batch_size)
    assert [len(request.seeds) for request in base.requests] == expected * 2
    assert [seed for request in base.requests for seed in request.seeds] == [*OPTIONS.seeds] * 2


def test_cells_nobody_wants_are_never_asked_for() -> None:
    base = FakeBase()
    drawn = render(base, wanted=(2, 4))
    assert [(cell.prompt, cell.seed) for cell, _, _ in drawn] == [
        ("tall", 2),
        ("tall", 4),
        ("wide", 2),
        ("wide", 4),
    ]
    assert [request.seeds for request in base.requests] == [(2, 4), (2, 4)]
    assert render(base, wanted=()) == []
    assert len(base.requests) == 2


def test_a_request_says_all_that_the_options_say() -> None:
    base = FakeBase()
    render(base, wanted=(3,))
    assert base.requests[1] == SampleRequest(
        text="a (red:1.2) dress",
        negative="",
        seeds=(3,),
        width=96,
        height=64,
        cfg_scale=7.0,
        steps=24,
        sampler="Euler a",
        text_options=ClipTextOptions(clip_skip=2),
    )


def test_pictures_come_before_the_next_batch_is_drawn() -> None:
    """So that each is on disk when a kill comes during the next."""
    base = FakeBase()
    drawn = render_prompts(
        cast(BaseModel, base),
        (TALL,),
        OPTIONS,
        epoch=1,
        text_options=ClipTextOptions(),
        is_wanted=lambda cell: True,
    )
    assert base.requests == []
    next(drawn)
    next(drawn)
    assert len(base.requests) == 1
    next(drawn)
    assert len(base.requests) == 2


def test_a_base_that_loses_pictures_is_no_base() -> None:
    base = FakeBase()
    base.sample = lambda request: [Image.new("RGB", (8, 8))]  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="shorter"):
        render(base)


# --- A1111's text ---


def text_of(**changes: Any) -> str:
    settings: dict[str, Any] = {
        "cell": CELL,
        "prompt": TALL,
        "options": OPTIONS,
        "text_options": ClipTextOptions(clip_skip=2),
        "origin": Origin(model="tiny"),
        **changes,
    }
    return parameters_text(**settings)


def settings_of(text: str) -> dict[str, str]:
    """Return the last line's settings as A1111 reads it: split at commas, then at colons."""
    pairs = (setting.partition(": ") for setting in text.split("\n")[-1].split(", "))
    return {name: value for name, _, value in pairs}


def test_the_text_is_a1111s_to_the_letter() -> None:
    assert text_of() == (
        "mirelle, 1girl\n"
        "Negative prompt: blurry\n"
        "Steps: 24, Sampler: Euler a, CFG scale: 7, Seed: 112233, Size: 512x768, "
        "Model: tiny, Clip skip: 2, RNG: CPU"
    )


def test_a_lora_is_named_where_a_person_would_write_it() -> None:
    tag = LoraTag(name="lion-dim4-0badcafe-000003", strength=1.0)
    text = text_of(origin=Origin(model="tiny", loras=(tag,)))
    assert text.split("\n")[0] == "mirelle, 1girl <lora:lion-dim4-0badcafe-000003:1>"
    assert text.split("\n")[1:] == text_of().split("\n")[1:]


@pytest.mark.parametrize(("scale", "written"), [(1.0, "1"), (7.5, "7.5"), (12.0, "12")])
def test_whole_scales_are_written_without_a_point(scale: float, written: str) -> None:
    text = text_of(options=replace(OPTIONS, cfg_scale=scale))
    assert settings_of(text)["CFG scale"] == written


@given(seed=st.integers(0, 2**64 - 1))
def test_no_digit_of_a_seed_is_lost(seed: int) -> None:
    cell = replace(CELL, seed=seed)
    assert settings_of(text_of(cell=cell))["Seed"] == str(seed)
    assert cell.file_name == f"tall-512x768-s{seed}.png"


def test_everything_known_of_the_files_is_written() -> None:
    tags = (LoraTag(name="x", strength=0.75), LoraTag(name="y", strength=-1))
    origin = Origin(
        model="m", loras=tags, model_hash="0123456789", vae="v.safetensors", vae_hash="ab"
    )
    text = text_of(
        origin=origin,
        options=replace(OPTIONS, sampler="DPM++ 2M Karras"),
        prompt=replace(TALL, text="1girl <lora:x:0.75> <lora:y:-1>"),
    )
    assert text.split("\n")[0] == "1girl <lora:x:0.75> <lora:y:-1>"
    found = settings_of(text)
    assert found["Sampler"] == "DPM++ 2M"
    assert found["Schedule type"] == "Karras"
    assert found["Model hash"] == "0123456789"
    assert found["VAE"] == "v.safetensors"
    assert found["VAE hash"] == "ab"
    assert "Schedule type" not in text_of()


# --- memory ---


class SmallMemory(FakeBase):
    """A base with room for so many pictures at once."""

    def __init__(self, room: int, error: BaseException) -> None:
        super().__init__()
        self.room = room
        self.error = error

    def sample(self, request: SampleRequest) -> list[Image.Image]:
        if len(request.seeds) > self.room:
            raise self.error
        return super().sample(request)


NO_MEMORY = (
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate"),
)


@pytest.mark.parametrize("error", NO_MEMORY)
def test_a_batch_that_does_not_fit_is_halved_and_that_is_said(error: BaseException) -> None:
    said: list[str] = []
    base = SmallMemory(1, error)
    painter = OomSafeSampler(cast(BaseModel, base), said.append)
    drawn = render(cast(FakeBase, painter), batch_size=5)
    assert [cell.seed for cell, _, _ in drawn] == [*OPTIONS.seeds] * 2
    assert all(image.getpixel((0, 0)) == (cell.seed % 256, 0, 0) for cell, _, image in drawn)
    # Five, two and one of the tall ones; the wide ones have as many pixels.
    assert len(said) == 2
    assert "2 (render.batch_size=2" in said[0]


def test_one_picture_too_large_and_other_errors_are_raised() -> None:
    with pytest.raises(MemoryError):
        render(
            cast(FakeBase, OomSafeSampler(cast(BaseModel, SmallMemory(0, MemoryError())), print))
        )
    other = SmallMemory(0, RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes"):
        render(cast(FakeBase, OomSafeSampler(cast(BaseModel, other), print)))


def test_an_empty_negative_prompt_has_no_line() -> None:
    assert text_of(prompt=WIDE).split("\n")[1].startswith("Steps: 24, ")


def test_a_model_with_a_comma_in_its_name_is_quoted() -> None:
    assert ', Model: "anime, v3", Clip skip: 2' in text_of(origin=Origin(model="anime, v3"))


# --- PNG files ---


def chunks_of(data: bytes) -> list[tuple[bytes, bytes]]:
    """Return a PNG's chunks by the layout of ISO 15948: length, name, content, CRC."""
    found, place = [], 8
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        found.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    return found


PIXELS = Image.frombytes("RGB", (5, 3), bytes(range(45)))


@pytest.mark.parametrize(
    ("words", "chunk"), [("1girl", b"tEXt"), ("fille \u00e9l\u00e9gante", b"iTXt")]
)
def test_png_carries_the_text_and_every_pixel(words: str, chunk: bytes) -> None:
    """ASCII in the chunk that every tool reads; anything else in the one made for it, in UTF-8."""
    text = text_of(prompt=replace(TALL, text=words))
    data = png_bytes(PIXELS, text)
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
        assert image.tobytes() == PIXELS.tobytes()
        assert image.info == {"parameters": text}
    assert [name for name, _ in chunks_of(data) if name.endswith(b"Xt")] == [chunk]
    assert next(content for name, content in chunks_of(data) if name == chunk).startswith(
        b"parameters\0"
    )


def test_equal_pictures_are_equal_files() -> None:
    assert png_bytes(PIXELS, text_of()) == png_bytes(PIXELS.copy(), text_of())
    assert png_bytes(PIXELS, text_of()) != png_bytes(
        PIXELS, text_of(text_options=ClipTextOptions())
    )
