"""A run's pictures: rendered once, from the files they belong to, and whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from PIL import Image
from torch import nn

from optbench.contracts import BaseModel, SampleRequest, TextOptions
from optbench.errors import DamagedFileError
from optbench.lora.network import LoraNetwork, build_network
from optbench.lora.save import save_lora
from optbench.models.text import clip
from optbench.models.text.clip import ClipTextOptions
from optbench.records import LoraTarget
from optbench.render import run_images
from optbench.render import sheet as render_sheet
from optbench.render.run_images import RunImages
from optbench.schema import Prompt, PromptOptions, RenderOptions, SavePrecision
from optbench.storage import files
from optbench.storage.rundir import RunDir
from tests.builders.network_options import PLAIN_NETWORK

TALL = Prompt(name="tall", text="1girl", negative="blurry", width=8, height=12)
WIDE = Prompt(name="wide", text="a dress", negative="", width=12, height=8)
SEEDS = (112233, 2**64 - 1)
OPTIONS = RenderOptions(
    enabled=True,
    seeds=SEEDS,
    cfg_scale=7.0,
    steps=4,
    sampler="DDIM",
    batch_size=1,
    sheet_format="png",
)


class Killed(BaseException):
    """What stops a test's rendering where a kill would stop a process."""


def words_as_tokens(text: str, **_: object) -> Any:
    """Return a text's tokens, a word each."""
    return SimpleNamespace(input_ids=text.split())


class FakeBase:
    """A base of one layer, whose pictures show the layer's weight, and the seed."""

    name = "fake"

    def __init__(self) -> None:
        self.fingerprint = "base-1"
        self.vae_fingerprint = "vae-1"
        self.dtype = torch.float32
        self.layer = nn.Linear(2, 2).requires_grad_(False)
        self.layer.weight.fill_(1.0)
        self.num_drawn = 0
        self.allowed = 1000

    def prompt_settings(self, prompts: Sequence[str], options: TextOptions) -> Mapping[str, object]:
        return clip.prompt_settings(words_as_tokens, prompts, options)

    def sample(self, request: SampleRequest) -> list[Image.Image]:
        if self.num_drawn + len(request.seeds) > self.allowed:
            raise Killed
        self.num_drawn += len(request.seeds)
        assert torch.is_inference_mode_enabled()
        size, level = (request.width, request.height), round(float(self.layer.weight.mean()) * 50)
        return [Image.new("RGB", size, (level, seed % 256, 0)) for seed in request.seeds]


@pytest.fixture
def base() -> FakeBase:
    return FakeBase()


@pytest.fixture
def gallery(base: FakeBase, tmp_path: Path) -> RunImages:
    return RunImages(
        run=RunDir(tmp_path / "runs" / "lion-1"),
        base=cast(BaseModel, base),
        prompts=(TALL, WIDE),
        options=OPTIONS,
        text_options=ClipTextOptions(),
        cache_dir=tmp_path / "cache",
    )


@pytest.fixture
def network(base: FakeBase) -> LoraNetwork:
    target = LoraTarget(
        name="lora_unet_layer", module=base.layer, part="unet", needs_conv_dim=False
    )
    options = replace(PLAIN_NETWORK, dim=1, alpha=1.0, train_text_encoder=False)
    return build_network([target], options, seed=1)


def save_change(
    gallery: RunImages, network: LoraNetwork, change: float, *, precision: SavePrecision = "float"
) -> None:
    """Save epoch 1 of a LoRA that adds `change` to every weight; leave the network at 9."""
    state = network.state_dict()
    for value, where in ((change, "file"), (9.0, "network")):
        state["lora_unet_layer.lora_down.weight"] = torch.ones(1, 2)
        state["lora_unet_layer.lora_up.weight"] = torch.full((2, 1), value)
        network.load_state_dict(state)
        if where == "file":
            path = gallery.run.lora_path(1)
            path.parent.mkdir(parents=True, exist_ok=True)
            save_lora(path, network.state_dict(), precision=precision, metadata={})


def image_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix == ".png")


def colours(folder: Path) -> dict[str, object]:
    """Return every picture's colour; opening it proves that it is whole."""
    found: dict[str, object] = {}
    for name in image_names(folder):
        with Image.open(folder / name) as image:
            image.load()
            found[name] = image.getpixel((0, 0))
    return found


def expected_colours(level: int, *seeds: int) -> dict[str, object]:
    return {
        f"{name}-s{seed}.png": (level, seed % 256, 0)
        for name in ("tall-8x12", "wide-12x8")
        for seed in seeds
    }


# --- the base alone ---


def test_the_base_is_drawn_once_and_shared_by_all_runs(gallery: RunImages, base: FakeBase) -> None:
    run_images.render_base(gallery)
    own = gallery.run.images_dir(0)
    assert colours(own) == expected_colours(50, *SEEDS)
    assert base.num_drawn == 4
    run_images.render_base(gallery)
    other = replace(gallery, run=RunDir(gallery.run.path.parent / "adamw-1"))
    run_images.render_base(other)
    assert base.num_drawn == 4
    assert image_names(other.run.images_dir(0)) == image_names(own)
    for name in image_names(own):
        assert (own / name).samefile(other.run.images_dir(0) / name)


def test_a_lost_picture_of_the_base_is_linked_again(gallery: RunImages, base: FakeBase) -> None:
    run_images.render_base(gallery)
    own = gallery.run.images_dir(0)
    (own / image_names(own)[1]).unlink()
    run_images.render_base(gallery)
    assert colours(own) == expected_colours(50, *SEEDS)
    assert base.num_drawn == 4


def refuse_links(*paths: Path) -> None:
    raise OSError("Invalid cross-device link")


def test_where_links_cannot_go_pictures_are_copied(
    gallery: RunImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", refuse_links)
    run_images.render_base(gallery)
    assert colours(gallery.run.images_dir(0)) == expected_colours(50, *SEEDS)


def test_a_kill_while_copying_leaves_no_half_picture(
    gallery: RunImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy_half(source: Path, target: Path) -> None:
        data = Path(source).read_bytes()
        Path(target).write_bytes(data[: len(data) // 2])
        raise Killed

    monkeypatch.setattr(os, "link", refuse_links)
    with monkeypatch.context() as patch, contextlib.suppress(Killed):
        patch.setattr(shutil, "copyfile", copy_half)
        run_images.render_base(gallery)
    run_images.render_base(gallery)
    assert colours(gallery.run.images_dir(0)) == expected_colours(50, *SEEDS)


def test_the_bases_pictures_say_how_they_were_made(gallery: RunImages) -> None:
    run_images.render_base(gallery)
    with Image.open(gallery.run.images_dir(0) / f"tall-8x12-s{SEEDS[1]}.png") as image:
        assert image.info["parameters"] == (
            "1girl\nNegative prompt: blurry\n"
            "Steps: 4, Sampler: DDIM, CFG scale: 7, Seed: 18446744073709551615, Size: 8x12, "
            "Model: fake, RNG: CPU"
        )


# --- what is there already ---


@pytest.mark.parametrize("allowed", [0, 1, 3])
def test_after_a_kill_only_the_missing_pictures_are_drawn(
    gallery: RunImages, base: FakeBase, allowed: int
) -> None:
    base.allowed = allowed
    with pytest.raises(Killed):
        run_images.render_base(gallery)
    base.allowed = 1000
    run_images.render_base(gallery)
    assert base.num_drawn == 4
    assert colours(gallery.run.images_dir(0)) == expected_colours(50, *SEEDS)


def test_a_kill_while_writing_leaves_no_half_picture(
    gallery: RunImages, base: FakeBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(file: int) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        # The key is written before any picture: without this the kill comes too early.
        patch.setattr(files, "write_json", lambda path, content: None)
        patch.setattr(os, "fsync", die)  # a picture's bytes are written, and not yet on disk
        with pytest.raises(Killed):
            run_images.render_base(gallery)
    assert base.num_drawn == 1
    assert not list(gallery.cache_dir.rglob("*.png"))
    run_images.render_base(gallery)
    assert colours(gallery.run.images_dir(0)) == expected_colours(50, *SEEDS)


def test_what_a_killed_writer_left_under_another_name_is_no_picture(
    gallery: RunImages, base: FakeBase, network: LoraNetwork
) -> None:
    save_change(gallery, network, 1.0)
    run_images.render_base(gallery)
    run_images.render_epoch(gallery, network, epoch=1)
    folder = gallery.run.images_dir(1)
    victim = folder / image_names(folder)[0]
    half = victim.read_bytes()[:40]
    victim.unlink()
    victim.with_name(f"{victim.name}.4711.tmp").write_bytes(half)
    run_images.render_epoch(gallery, network, epoch=1)
    assert base.num_drawn == 4 + 4 + 1
    assert colours(folder) == expected_colours(100, *SEEDS)


def test_more_seeds_add_pictures_and_larger_batches_none(
    gallery: RunImages, base: FakeBase, network: LoraNetwork
) -> None:
    save_change(gallery, network, 1.0)
    more = replace(gallery, options=replace(OPTIONS, seeds=(*SEEDS, 5), batch_size=3))
    for one, num_drawn in ((gallery, 8), (more, 12), (gallery, 12)):
        run_images.render_base(one)
        run_images.render_epoch(one, network, epoch=1)
        assert base.num_drawn == num_drawn
    assert colours(gallery.run.images_dir(1)) == expected_colours(100, *SEEDS, 5)


def test_changed_prompts_are_drawn_anew_everywhere(
    gallery: RunImages, base: FakeBase, network: LoraNetwork
) -> None:
    save_change(gallery, network, 1.0)
    run_images.render_base(gallery)
    run_images.render_epoch(gallery, network, epoch=1)
    # The same name and size, so the files' names do not tell.
    changed = replace(gallery, prompts=(replace(TALL, text="2girls"), WIDE))
    run_images.render_base(changed)
    assert not gallery.run.images_dir(1).exists()
    run_images.render_epoch(changed, network, epoch=1)
    assert base.num_drawn == 2 * (4 + 4)
    for epoch in (0, 1):
        with Image.open(gallery.run.images_dir(epoch) / "tall-8x12-s112233.png") as image:
            assert image.info["parameters"].startswith("2girls")
    run_images.render_base(gallery)
    assert base.num_drawn == 2 * (4 + 4)  # of the old prompts the base's are still shared


def changes() -> Iterator[tuple[str, Any, bool]]:
    """Yield what a gallery may differ in, and whether a picture shows it."""
    yield "clip_skip", {"text_options": ClipTextOptions(clip_skip=2)}, True
    yield "prompt's text", {"prompts": (replace(TALL, text="2girls"), WIDE)}, True
    yield "negative", {"prompts": (replace(TALL, negative=""), WIDE)}, True
    yield "width", {"prompts": (replace(TALL, width=16), WIDE)}, True
    yield "prompt's name", {"prompts": (replace(TALL, name="long"), WIDE)}, True
    yield "scale", {"options": replace(OPTIONS, cfg_scale=7.5)}, True
    yield "steps", {"options": replace(OPTIONS, steps=5)}, True
    yield "sampler", {"options": replace(OPTIONS, sampler="Euler a")}, True
    yield "seeds", {"options": replace(OPTIONS, seeds=(1,))}, False
    yield "batch_size", {"options": replace(OPTIONS, batch_size=4)}, False
    yield "places", {"run": RunDir(Path("a")), "cache_dir": Path("b")}, False


@pytest.mark.parametrize(
    ("change", "shows"), [pytest.param(one, shows, id=name) for name, one, shows in changes()]
)
def test_the_key_knows_all_that_pictures_depend_on(
    gallery: RunImages, change: dict[str, Any], shows: bool
) -> None:
    assert (replace(gallery, **change).key != gallery.key) == shows


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("fingerprint", "base-2"),
        ("vae_fingerprint", "vae-2"),
        ("dtype", torch.float16),
    ],
)
def test_the_key_knows_the_base(
    gallery: RunImages, base: FakeBase, attribute: str, value: object
) -> None:
    before = gallery.key
    assert gallery.key == before
    setattr(base, attribute, value)
    assert gallery.key != before


# --- the pictures of a LoRA ---


def test_an_epochs_pictures_show_its_file_and_not_the_network(
    gallery: RunImages, network: LoraNetwork, base: FakeBase
) -> None:
    save_change(gallery, network, 1.0)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    run_images.render_epoch(gallery, network, epoch=1)
    folder = gallery.run.images_dir(1)
    assert colours(folder) == expected_colours(100, *SEEDS)
    with Image.open(folder / f"wide-12x8-s{SEEDS[0]}.png") as image:
        assert image.info["parameters"].startswith("a dress <lora:lion-1-000001:1>\n")
    after = network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert float(base.layer.weight.mean()) == 1


def test_pictures_show_the_files_precision(gallery: RunImages, network: LoraNetwork) -> None:
    save_change(gallery, network, 4.017, precision="bf16")
    run_images.render_epoch(gallery, network, epoch=1)
    # bf16 knows 4 and 4.03125 and nothing between; 50 levels a unit, and 1 is the layer's own.
    assert colours(gallery.run.images_dir(1)) == expected_colours(round(50 * 5.03125), *SEEDS)
    assert round(50 * 5.03125) != round(50 * 5.017)


def test_a_whole_epoch_does_not_even_need_its_file(
    gallery: RunImages, network: LoraNetwork, base: FakeBase
) -> None:
    save_change(gallery, network, 1.0)
    run_images.render_epoch(gallery, network, epoch=1)
    gallery.run.lora_path(1).unlink()
    run_images.render_epoch(gallery, network, epoch=1)
    assert base.num_drawn == 4


def test_a_kill_while_drawing_gives_network_and_base_their_weights_back(
    gallery: RunImages, network: LoraNetwork, base: FakeBase
) -> None:
    save_change(gallery, network, 1.0)
    base.allowed = 3
    before = network.state_dict()
    with pytest.raises(Killed):
        run_images.render_epoch(gallery, network, epoch=1)
    after = network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(base.layer.weight, torch.ones(2, 2))
    base.allowed = 1000
    run_images.render_epoch(gallery, network, epoch=1)
    assert base.num_drawn == 4
    assert colours(gallery.run.images_dir(1)) == expected_colours(100, *SEEDS)


def test_a_damaged_lora_is_named_and_draws_nothing(
    gallery: RunImages, network: LoraNetwork, base: FakeBase
) -> None:
    save_change(gallery, network, 1.0)
    gallery.run.lora_path(1).write_bytes(b"half a file")
    with pytest.raises(DamagedFileError, match="lion-1-000001.safetensors"):
        run_images.render_epoch(gallery, network, epoch=1)
    assert base.num_drawn == 0


def test_a_run_has_a_sheet_per_prompt(gallery: RunImages, network: LoraNetwork) -> None:
    save_change(gallery, network, 1.0)
    run_images.render_base(gallery)
    run_images.render_epoch(gallery, network, epoch=1)
    prompts = PromptOptions(name="two", prompts=gallery.prompts)
    run_images.draw_run_sheets(gallery.run, prompts, gallery.options, num_epochs=1)
    for prompt in gallery.prompts:
        sheet = render_sheet.run_sheet(gallery.run, prompt, seeds=SEEDS, num_epochs=1)
        with Image.open(gallery.run.sheets_dir / f"{prompt.name}.png") as image:
            for placed in sheet.pictures:
                left, top, width, height = placed.box
                level = 50 if placed.row.startswith("base") else 100
                found = image.convert("RGB").getpixel((left + width // 2, top + height // 2))
                assert found in [(level, seed % 256, 0) for seed in SEEDS]


def test_pictures_that_show_nothing_are_named(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    folder = run.images_dir(2)
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "black.png")
    grey = Image.new("RGB", (8, 8), (90, 90, 90))
    grey.putpixel((3, 3), (93, 90, 90))
    grey.save(folder / "grey.png")
    drawn = Image.new("RGB", (8, 8), (90, 90, 90))
    drawn.putpixel((3, 3), (90, 90, 140))
    drawn.save(folder / "drawn.png")
    assert run_images.flat_images(run, epoch=2) == ("black.png", "grey.png")
    assert run_images.flat_images(run, epoch=1) == ()
