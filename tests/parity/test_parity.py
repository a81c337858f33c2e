"""Our numbers against those that sd-scripts' own functions gave (README.md in this folder)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from optbench import rng
from optbench.config import rules
from optbench.data.buckets import bucket_chooser
from optbench.data.captions import Warmup, draw_caption
from optbench.lora.blocks import sized_sites
from optbench.lora.layer import LoraLayer
from optbench.lora.network import LoraNetwork
from optbench.models.diffusion import STABLE_DIFFUSION_SCHEDULE, DiffusionProcess
from optbench.models.files.families import FAMILIES
from optbench.optim.schedules import multiplier
from optbench.records import LoraSite, LoraTarget, UnetBlock
from optbench.schema import RunConfig
from optbench.training.loss import huber_thresholds, mean_loss, sample_weights
from optbench.training.noise import multires_noise, offset_noise
from tests.builders.kohya import imported_config
from tests.builders.network_options import PLAIN_NETWORK
from tests.parity.make import NUM_UPDATES, Scripted

HERE = Path(__file__).parent
NEEDED = "--train_data_dir=/images --resolution=512"


@pytest.fixture(autouse=True)
def _no_checkpoint_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "check_base", lambda _: [])


def tensors(name: str) -> dict[str, Tensor]:
    with safe_open(HERE / name, "pt") as file:
        assert "48d368fa" in file.metadata()["made with"]
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping


def cases(name: str) -> list[Any]:
    whole = json.loads((HERE / name).read_text())
    assert "48d368fa" in whole["made_with"]
    return list(whole["cases"])


def config(options: str, *, family: str = "sd15") -> RunConfig:
    """Return what the options mean here, so that the importer is part of the comparison."""
    return imported_config(f"{NEEDED} {options}", family=family)


@pytest.mark.parametrize("text", sorted(tensors("rates.safetensors")))
def test_rates_of_every_schedule(text: str) -> None:
    given = f"--lr_scheduler={text} --learning_rate=1e-4 --max_train_steps={NUM_UPDATES}"
    settings = config(given)
    assert settings.optimizer.lr is not None
    rates = [
        settings.optimizer.lr * multiplier(settings.lr_scheduler, step, NUM_UPDATES)
        for step in range(NUM_UPDATES)
    ]
    expected = tensors("rates.safetensors")[text].tolist()
    assert rates == pytest.approx(expected, rel=1e-12, abs=1e-18)


def loss_texts() -> list[str]:
    return sorted(set(tensors("losses.safetensors")) - {"prediction", "target", "timesteps"})


@pytest.mark.parametrize("text", loss_texts())
def test_losses_and_their_weights(text: str) -> None:
    stored = tensors("losses.safetensors")
    settings = config(text)
    loss = settings.loss
    kind = "v_prediction" if settings.base.v_parameterization else "epsilon"
    process = DiffusionProcess({**STABLE_DIFFUSION_SCHEDULE, "prediction_type": kind})
    has_reg = settings.dataset.reg_dir is not None
    for index, timestep in enumerate(stored["timesteps"]):
        timesteps_B = timestep[None]
        weights_B = sample_weights(loss, process, timesteps_B, is_regularization=[has_reg])
        value = mean_loss(
            stored["prediction"][index : index + 1],
            stored["target"][index : index + 1],
            loss,
            weights_B=weights_B,
            thresholds_B=huber_thresholds(loss, process, timesteps_B),
        )
        assert float(value) == pytest.approx(float(stored[text][index]), rel=5e-6)


def noise_texts() -> list[str]:
    return sorted({key.rpartition("/")[0] for key in tensors("noises.safetensors")})


@pytest.mark.parametrize("text", noise_texts())
def test_noise_options(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = {
        key.rpartition("/")[2]: value
        for key, value in tensors("noises.safetensors").items()
        if key.rpartition("/")[0] == text
    }
    draws = iter([stored[key] for key in sorted(stored) if key.startswith("draw")])
    monkeypatch.setattr(torch, "randn", lambda *_, **__: next(draws).clone())
    monkeypatch.setattr(torch, "rand", lambda *_, **__: next(draws).clone())
    loss, generator = config(text).loss, torch.Generator()
    noise_CHW = stored["noise"]
    if loss.noise_offset is not None:
        noise_CHW = noise_CHW + offset_noise(stored["latent"], loss, generator)
    if loss.multires_noise_iterations is not None:
        assert loss.multires_noise_discount is not None
        noise_CHW = multires_noise(
            noise_CHW,
            iterations=loss.multires_noise_iterations,
            discount=loss.multires_noise_discount,
            generator=generator,
        )
    torch.testing.assert_close(noise_CHW, stored["result"], rtol=1e-6, atol=1e-6)
    assert next(draws, None) is None  # as many draws, of the same kinds, in the same order


def test_caption_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = cases("captions.json")
    assert len(stored) > 200
    for text, caption, step, epoch, expected in stored:
        monkeypatch.setattr(rng, "shuffler", lambda *_: Scripted())  # each purpose has its own
        options = config(text).dataset
        num_steps = options.token_warmup_step
        num_steps = math.floor(num_steps * NUM_UPDATES) if num_steps < 1 else num_steps
        warmup = Warmup(num_done=step, num_steps=num_steps) if step < num_steps else None
        # Without wildcards only the first line is read, there when it is used, here when it is
        # read from its file.
        line = caption if options.enable_wildcard else caption.split("\n")[0]
        if "prefix" in text and ("\n" in caption or not caption):
            continue  # there the prefix is the first line's alone, and two spaces join nothing
        result = draw_caption(line, options, seed=0, place=(epoch, "x", 0), warmup=warmup)
        assert result == expected, (text, caption, step)


def test_buckets_and_resized_sizes() -> None:
    stored = cases("buckets.json")
    assert len(stored) > 400
    for resolution, text, width, height, *expected in stored:
        options = config(f"--max_bucket_reso=1024 {text} --resolution={resolution}").dataset
        if not options.enable_bucket:
            continue  # without buckets latents are cached there from what covers the resolution
        chosen = bucket_chooser(options)((width, height))
        assert chosen is not None
        assert [*chosen[0], *chosen[1]] == expected, (resolution, text, width, height)


def test_weights_and_sizes_of_every_block() -> None:
    for is_sdxl, text, weights, sizes, conv_dim, conv_alpha in cases("blocks.json"):
        family = "sdxl" if is_sdxl else "sd15"
        given = f"--network_dim=16 --network_alpha=8 --network_args {text}"
        network = config(given, family=family).network
        blocks = FAMILIES[family].unet_blocks
        ends = blocks.num_ends
        sides = (("down", blocks.down), ("mid", blocks.mid), ("up", blocks.up))
        sites = [
            LoraSite(
                name=f"{kind} {side} {number}",
                part="unet",
                needs_conv_dim=kind == "conv",
                shape=(8, 8, 3, 3) if kind == "conv" else (8, 8),
                block=UnetBlock(side=side, number=number, blocks=blocks),  # type: ignore[arg-type]
            )
            for side, count in sides
            for number in range(count)
            for kind in ("linear", "conv")
        ]
        found = {layer.site.name: layer for layer in sized_sites(sites, network)}
        for site in sites:
            assert site.block is not None
            index = site.block.index
            kind = site.name.partition(" ")[0]
            weight = 1.0 if weights is None else weights[index]
            if sizes is None:
                dim, alpha = (16, 8.0) if kind == "linear" else (conv_dim, conv_alpha)
            else:
                lists = sizes[:2] if kind == "linear" else sizes[2:]
                dim, alpha = (items and items[index] for items in lists)
            layer = found.get(site.name)
            if not dim or weight == 0:
                assert layer is None or layer.lr_weight == 0, (text, site.name)
                continue
            assert layer is not None, (text, site.name)
            assert (layer.dim, layer.alpha) == (dim, alpha), (text, site.name)
            assert layer.lr_weight == pytest.approx(weight, rel=1e-12), (text, site.name)
        assert blocks.num_listed == (len(weights) if weights else blocks.num_listed)
        assert ends == int(is_sdxl)


MODULES = {
    "linear": nn.Linear(6, 5),
    "pointwise": nn.Conv2d(6, 4, 1),
    "conv": nn.Conv2d(3, 4, 3, stride=2, padding=1),
}


def layer(name: str, *, dim: int, alpha: float) -> LoraLayer:
    module = MODULES[name]
    target = LoraTarget(name=name, module=module, part="unet", needs_conv_dim=False)
    return LoraLayer(target, dim=dim, alpha=alpha, seed=0)


@pytest.mark.parametrize("limit", [0.5, 2.0, 50.0])
def test_max_norm(limit: float) -> None:
    stored = tensors("layers.safetensors")
    layers = [layer(name, dim=3, alpha=1.5) for name in MODULES]
    for each in layers:
        each.down.data = stored[f"norm{limit}/{each.name}/down/before"].clone()
        each.up.data = stored[f"norm{limit}/{each.name}/up/before"].clone()
    options = config(f"--scale_weight_norms={limit}").network
    found = LoraNetwork(layers, options).end_step()
    scaled, mean, most = stored[f"norm{limit}/scaled,mean,most"].tolist()
    assert list(found.values()) == pytest.approx([scaled, mean, most], rel=1e-6)
    for each in layers:
        for part in ("down", "up"):
            expected = stored[f"norm{limit}/{each.name}/{part}/after"]
            torch.testing.assert_close(getattr(each, part).data, expected, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_dropouts_and_their_rescaling(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = {
        key.removeprefix(f"dropout/{name}/"): value
        for key, value in tensors("layers.safetensors").items()
        if key.startswith(f"dropout/{name}/")
    }
    each, module = layer(name, dim=4, alpha=2.0), MODULES[name]
    module.weight.data, module.bias.data = stored["weight"], stored["bias"]  # type: ignore[union-attr]
    each.down.data, each.up.data = stored["down"], stored["up"]
    masks = iter([stored["elements"], stored["ranks"]])
    monkeypatch.setattr(torch, "rand", lambda shape, **_: next(masks).reshape(shape))
    options = config("--network_dropout=0.25 --network_args rank_dropout=0.5").network
    assert (options.dropout, options.rank_dropout) == (0.25, 0.5)
    each.begin_step(1, options)
    handles = list(each.attach())
    output = module(stored["inputs"])
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(output, stored["output"], rtol=1e-6, atol=1e-6)
    assert PLAIN_NETWORK.dropout == 0
