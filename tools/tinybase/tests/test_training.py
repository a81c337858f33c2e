"""How the embedded base is trained: on what, and to the same weights after a kill."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("skia")

from diffusers import AutoencoderKL
from transformers import CLIPTokenizer

from optbench import rng
from tools.tinybase import autoencoder, drawings, pretrain, shapes, stages, text, unet, world
from tools.tinybase import tokenizer as vocabulary
from tools.tinybase.autoencoder import PatchCodes
from tools.tinybase.drawings import Drawings, Drawn

SIZES = ((512, 768), (768, 512), (512, 512))
NUM_STEPS = 3
SEED = 5  # of which every six drawings show all three sizes, as every 500 of any seed do


class Killed(BaseException):
    """What stops a test's stage where a kill would stop a process."""


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums are repeatable to the bit there."""
    monkeypatch.setattr(stages, "device", lambda: torch.device("cpu"))


@pytest.fixture
def save_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "_SAVE_EVERY_SECONDS", -1.0)


# --- what the stages train on ---


@pytest.fixture(scope="module")
def codes() -> PatchCodes:
    """Return a map from pictures to codes along 32 random directions."""
    draw = torch.randn(3072, shapes.LATENT_CHANNELS, generator=torch.Generator().manual_seed(1))
    directions = torch.linalg.qr(draw).Q.T.contiguous()
    spread = torch.linspace(4, 1, shapes.LATENT_CHANNELS)
    return PatchCodes(mean=torch.zeros(3072), directions=directions, spread=spread)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawings, "_SHARD_SIZE", 6)


def make(folder: Path, codes: PatchCodes, *, num: int = 12) -> dict[tuple[int, int], Drawings]:
    return drawings.make_drawings(folder, codes, seed=SEED, num_drawings=num)


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return what makes every further drawing an error."""

    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("drawn again")

    def forbid() -> None:
        monkeypatch.setattr(world, "draw_sample", fail)
        monkeypatch.setattr(world, "draw_variety", fail)

    return forbid


@pytest.mark.usefixtures("small_shards")
def test_drawings_are_kept_with_their_codes_and_words(
    tmp_path: Path, codes: PatchCodes, no_drawing: Callable[[], None]
) -> None:
    first = make(tmp_path, codes)
    assert tuple(first) == SIZES
    assert sum(len(one.drawn) for one in first.values()) == 12
    draw = rng.shuffler(SEED, "tiny", "drawing", 0)
    width, height = draw.choices(SIZES, (0.45, 0.35, 0.2))[0]
    drawing = world.draw_sample(draw.getrandbits(48), width=width, height=height)
    stored = first[width, height]
    assert stored.drawn[0].tags == drawing.tags
    assert stored.drawn[0].attributes == drawing.attributes
    assert stored.latents_NCHW.shape[1:] == (32, height // 32, width // 32)
    expected = codes(autoencoder.to_tensor([np.asarray(drawing.image)]))[0]
    assert torch.equal(stored.latents_NCHW[0], expected.half())
    squashed = np.asarray(drawing.image.resize((128, 128)))
    np.testing.assert_array_equal(stored.thumbnails_NHWC[0], squashed)
    # A second call reads, and a longer one draws only what is new.
    no_drawing()
    again = make(tmp_path, codes)
    for size in SIZES:
        assert torch.equal(again[size].latents_NCHW, first[size].latents_NCHW)
        assert torch.equal(again[size].thumbnails_NHWC, first[size].thumbnails_NHWC)
        assert again[size].drawn == first[size].drawn
    with pytest.raises(AssertionError, match="drawn again"):
        make(tmp_path, codes, num=18)


@pytest.mark.usefixtures("small_shards")
def test_a_shard_without_its_words_is_drawn_again(tmp_path: Path, codes: PatchCodes) -> None:
    first = make(tmp_path, codes)
    (tmp_path / "drawings" / "000006.json").unlink()
    again = make(tmp_path, codes)
    assert all(torch.equal(again[size].latents_NCHW, first[size].latents_NCHW) for size in SIZES)


@pytest.mark.usefixtures("small_shards")
def test_a_kill_while_words_are_written_leaves_no_half_shard(
    tmp_path: Path, codes: PatchCodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_half(path: Path, content: str, **options: Any) -> None:
        path.write_bytes(content.encode()[:100])
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", write_half)
        with contextlib.suppress(Killed):
            make(tmp_path, codes, num=6)
    assert sum(len(one.drawn) for one in make(tmp_path, codes, num=6).values()) == 6


@pytest.mark.parametrize(("large", "num", "size"), [(False, 12, 128), (True, 3, 256)])
def test_crops_are_keyed_by_their_step(large: bool, num: int, size: int) -> None:
    first, again = (autoencoder._crops(1, 5, large=large) for _ in range(2))
    assert first.shape == (num, 3, size, size)
    assert torch.equal(first, again)
    assert not torch.equal(first, autoencoder._crops(1, 6, large=large))
    assert first.min() >= -1
    assert first.max() <= 1
    assert float(first.std()) > 0.1


def test_the_encoder_sees_whole_pictures_keyed_by_their_step() -> None:
    first, again = (autoencoder._whole_pictures(1, 5) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert [tuple(one.shape) in {(1, 3, h, w) for w, h in SIZES} for one in first] == [True, True]


def test_every_step_makes_one_picture_of_the_pool_a_new_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(autoencoder, "_POOL_SIZE", 5)
    monkeypatch.setattr(autoencoder, "_picture", lambda seed, slot, version: (slot, version))
    pools = [{autoencoder._pool_picture(0, slot, step) for slot in range(5)} for step in range(11)]
    assert all(len(one) == 5 for one in pools)
    assert [len(after - before) for before, after in itertools.pairwise(pools)] == [1] * 10


def test_timesteps_come_one_from_each_part_of_the_schedule() -> None:
    noiser = unet._Noiser()
    draws = [noiser.timesteps(8, torch.Generator().manual_seed(seed)) for seed in range(300)]
    for timesteps in draws:
        assert (timesteps // 125).tolist() == list(range(8))
    found = torch.stack(draws)
    # 2400 draws of 125 numbers: either end is there.
    assert int((found % 125).min()) == 0
    assert int((found % 125).max()) == 124


def test_losses_are_weighted_by_min_snr() -> None:
    noiser = unet._Noiser()
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    kept = np.cumprod(1 - betas)
    snr = kept / (1 - kept)
    expected = torch.from_numpy(np.minimum(snr, 5) / snr).float()
    # The library's thousand factors are float32.
    torch.testing.assert_close(noiser.weights, expected, rtol=1e-3, atol=1e-4)
    assert float(noiser.weights.max()) == 1


def test_worker_processes_draw_the_same(tmp_path: Path, codes: PatchCodes) -> None:
    (tmp_path / "alone").mkdir()
    (tmp_path / "shards").mkdir()
    draw = functools.partial(drawings._draw_shard, tmp_path / "shards", codes, SEED, 2)
    assert list(drawings._each(draw, [0, 2], num_workers=2)) == [None, None]
    alone = functools.partial(drawings._draw_shard, tmp_path / "alone", codes, SEED, 2)
    assert list(drawings._each(alone, [0, 2], num_workers=1)) == [None, None]
    names = [f"{start:06d}.{kind}" for start in (0, 2) for kind in ("json", "safetensors")]
    for name in names:
        assert (tmp_path / "shards" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


@torch.no_grad()
def test_captions_and_pictures_are_matched_by_their_own(
    few: dict[tuple[int, int], Drawings],
) -> None:
    torch.manual_seed(0)
    matcher = text.Matcher()
    thumbnails = torch.cat([one.thumbnails_NHWC for one in few.values()])
    images = torch.nn.functional.normalize(text.embed(matcher.image_encoder, thumbnails), dim=-1)
    # Captions whose embeddings are the pictures' own, or those of each one's neighbour.
    own = torch.linalg.pinv(matcher.text_projection.weight) @ images.T
    loss, found = matcher(own.T, thumbnails)
    wrong_loss, wrong_found = matcher(own.T.roll(1, 0), thumbnails)
    assert float(found) == 1
    assert float(wrong_found) == 0
    assert float(loss) < float(wrong_loss)
    # Untrained, the logits are cosines over CLIP's temperature.
    cosines = images @ images.T / 0.07
    rows, columns = cosines.log_softmax(1), cosines.log_softmax(0)
    expected = -(torch.diagonal(rows) + torch.diagonal(columns)).mean() / 2
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)


def test_attributes_with_one_value_teach_nothing() -> None:
    drawn = [
        Drawn(tags=(), attributes={"hair": hair, "eyes": "blue"}, degraded=False)
        for hair in ("bun", "bob", "bun")
    ]
    assert text.attribute_values(drawn) == {"hair": ["bob", "bun"]}


@pytest.fixture
def few(codes: PatchCodes) -> dict[tuple[int, int], Drawings]:
    """Return six tiny drawings of two sizes with random latents."""
    found = {}
    for place, size in enumerate(((128, 192), (128, 128))):
        tags = [("1girl", "solo", f"{color} hair") for color in ("red", "blue", "green")]
        drawn = [Drawn(tags=one, attributes={"hair": one[2]}, degraded=False) for one in tags]
        shape = (3, shapes.LATENT_CHANNELS, size[1] // 32, size[0] // 32)
        generator = torch.Generator().manual_seed(place)
        latents = torch.randn(shape, generator=generator).half()
        pictures = torch.randint(256, (3, 128, 128, 3), generator=generator, dtype=torch.uint8)
        found[size] = Drawings(latents_NCHW=latents, thumbnails_NHWC=pictures, drawn=tuple(drawn))
    return found


def test_batches_hold_one_size_and_now_and_then_no_caption(
    few: dict[tuple[int, int], Drawings],
) -> None:
    batches = [unet._draw_batch(few, random.Random(seed)) for seed in range(200)]
    shapes_seen = {tuple(latents.shape) for latents, _ in batches}
    assert shapes_seen == {(8, 32, 6, 4), (8, 32, 4, 4)}
    texts = [one for _, captions in batches for one in captions]
    # 1600 draws of a tenth: three standard deviations are 0.023.
    assert texts.count("") / len(texts) == pytest.approx(0.1, abs=0.023)
    assert any("red hair" in one for one in texts)


# --- whole stages ---


@pytest.fixture
def few_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let vocabularies be learnt from a few captions, in a moment."""
    monkeypatch.setattr(vocabulary, "_NUM_CAPTIONS", 20)
    monkeypatch.setattr(vocabulary, "_NUM_WORD_LISTS", 2)


@pytest.fixture
def tokenizer(tmp_path: Path, few_words: None) -> CLIPTokenizer:
    vocabulary.build_tokenizer(tmp_path / "words")
    return CLIPTokenizer.from_pretrained(tmp_path / "words")


def small_crops(seed: int, step_index: int, *, large: bool) -> Tensor:
    rng.shuffler(seed, "tiny", "crops", step_index)  # what a kill waits for
    return torch.rand(2, 3, 64, 64, generator=rng.generator(seed, "tiny", step_index)) * 2 - 1


def small_pictures(seed: int, step_index: int) -> list[Tensor]:
    return list(small_crops(seed, step_index, large=False).split(1))


def train_stage(
    name: str, folder: Path, tokenizer: CLIPTokenizer, few: dict[tuple[int, int], Drawings]
) -> list[Tensor]:
    """Return all weights that a stage of the pre-training ends with."""
    models: list[nn.Module]
    if name == "autoencoder":
        models = [
            autoencoder.train_autoencoder(
                folder, seed=1, num_encoder_steps=NUM_STEPS, num_decoder_steps=NUM_STEPS
            )
        ]
    elif name == "text":
        models = [*text.train_encoders(folder, tokenizer, few, seed=1, num_steps=NUM_STEPS)]
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            encoder = shapes.new_text_encoder(tokenizer)
        before = copy.deepcopy(encoder.state_dict())
        trained = unet.train_unet(folder, encoder, tokenizer, few, seed=1, num_steps=NUM_STEPS)
        moved = [not torch.equal(one, before[key]) for key, one in encoder.state_dict().items()]
        assert sum(moved) > len(moved) / 2  # the text encoder learns along
        models = [trained, encoder]
    return [value.detach().clone() for model in models for value in model.state_dict().values()]


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.usefixtures("save_always")
@pytest.mark.parametrize("name", ["autoencoder", "text", "unet"])
def test_a_killed_training_ends_bit_identical(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tokenizer: CLIPTokenizer,
    few: dict[tuple[int, int], Drawings],
    codes: PatchCodes,
) -> None:
    shuffler = rng.shuffler

    def die_in_step_2(seed: int, purpose: rng.Purpose, *where: int | str) -> random.Random:
        if where[-1] == 2:
            raise Killed
        return shuffler(seed, purpose, *where)

    monkeypatch.setattr(autoencoder, "fit_codes", lambda folder, *, seed: codes)
    monkeypatch.setattr(autoencoder, "_crops", small_crops)
    monkeypatch.setattr(autoencoder, "_whole_pictures", small_pictures)
    monkeypatch.setattr(text, "_BATCH_SIZE", 4)
    (tmp_path / "straight").mkdir()
    expected = train_stage(name, tmp_path / "straight", tokenizer, few)
    with monkeypatch.context() as patch:
        patch.setattr(rng, "shuffler", die_in_step_2)
        with pytest.raises(Killed):
            train_stage(name, tmp_path, tokenizer, few)
    torch.rand(100)  # another process's stream stands elsewhere
    assert_equal(train_stage(name, tmp_path, tokenizer, few), expected)


@pytest.mark.usefixtures("small_shards", "few_words")
def test_pre_training_goes_from_a_seed_to_a_base_and_is_not_done_twice(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    codes: PatchCodes,
    no_drawing: Callable[[], None],
) -> None:
    for module in (autoencoder, pretrain):
        monkeypatch.setattr(module, "fit_codes", lambda folder, *, seed: codes)
    monkeypatch.setattr(autoencoder, "_crops", small_crops)
    monkeypatch.setattr(autoencoder, "_whole_pictures", small_pictures)
    monkeypatch.setattr(text, "_BATCH_SIZE", 4)
    budget = pretrain.Budget(
        num_drawings=6, encoder_steps=1, decoder_steps=1, text_steps=1, unet_steps=1
    )
    run = tmp_path / "run"
    pretrain.pretrain(run, tmp_path / "one", seed=SEED, budget=budget)
    assert sorted(path.name for path in run.iterdir()) == [
        "decoder.state",
        "drawings",
        "encoder.state",
        "text.state",
        "tokenizer",
        "unet.state",
    ]
    no_drawing()
    pretrain.pretrain(run, tmp_path / "two", seed=SEED, budget=budget)
    written = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert len(written) == 14
    for path in written:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()
    # The gains sit in the exported autoencoder, and not in the kept one.
    kept = torch.load(run / "decoder.state", weights_only=True)["parts"]["average"]["mean"]
    vae = AutoencoderKL.from_pretrained(tmp_path / "one" / "vae")
    half = torch.nn.ModuleList([vae.decoder, vae.post_quant_conv])
    named = dict(zip([name for name, _ in half.named_parameters()], kept, strict=True))
    gains = autoencoder.latent_gains(codes)
    found = vae.post_quant_conv.weight * gains[None, :, None, None]
    torch.testing.assert_close(found, named["1.weight"], rtol=2e-3, atol=1e-6)  # float16 on disk
    # Away from the latents a weight is the nearest with four explicit bits of mantissa.
    name = "0.up_blocks.0.resnets.0.conv1.weight"
    rounded = dict(half.named_parameters())[name]
    assert torch.equal(torch.frexp(rounded).mantissa * 2**5 % 1, torch.zeros_like(rounded))
    torch.testing.assert_close(rounded, named[name], rtol=2**-5, atol=1e-6)
