"""A resized file on a base: diffusers reads every key, and predicts what the algebra promises."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.schedulers import DDPMScheduler

from optbench.lora.adapters.apply import AdapterFile, applied, misfits
from optbench.lora.file import LoraFile, read_lora
from optbench.lora.layer import supported
from optbench.lora.network import build_network
from optbench.lora.resize.merge import layer_factors
from optbench.lora.resize.resize import ResizeSpec, write_resized
from optbench.lora.resize.rules import SizeRule
from optbench.lora.save import save_lora
from optbench.lora.svd import decompose
from optbench.models import sd15, stable_diffusion
from optbench.models.text.clip import ClipTextOptions
from tests.builders.lora_files import write_lora
from tests.builders.network_options import PLAIN_NETWORK

LOCON = replace(PLAIN_NETWORK, name="locon", dim=6, alpha=3.0, conv_dim=5, conv_alpha=2.0)
# The networks are float32 and the base has a dozen layers in a row; sums differ in their order.
TOLERANCE = 1e-4


@pytest.fixture
def base() -> stable_diffusion.StableDiffusion:
    return sd15.tiny(0)


@pytest.fixture
def source(base: stable_diffusion.StableDiffusion, tmp_path: Path) -> Path:
    """Return a LoRA on every linear, 1x1 and 3x3 layer whose change of the base is plain to see."""
    network = build_network(base.lora_targets(), LOCON, seed=1)
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for group in network.parameter_groups():
            for weight in group.parameters:
                weight.copy_(torch.randn(weight.shape, generator=draw) / 6)
    path = tmp_path / "big.safetensors"
    save_lora(path, network.state_dict(), precision="float", metadata={})
    return path


def resized(source: Path, *, dim: int, conv_dim: int | None = None) -> Path:
    rule = SizeRule(method="none", param=None, dim=dim, conv_dim=conv_dim, compat="v0.11")
    target = source.with_name(f"dim{dim}.safetensors")
    wanted = ResizeSpec(name=target.stem, rule=rule, precision="float", weights=None)
    write_resized([source], target, wanted)
    return target


def inputs() -> dict[str, Any]:
    draw = torch.Generator().manual_seed(4)
    return {
        "noisy": torch.randn(2, 4, 8, 12, generator=draw),
        "timesteps": torch.tensor([120, 700]),
        "captions": ["1girl, smile", "blue sky"],
    }


def predicted(base: stable_diffusion.StableDiffusion) -> torch.Tensor:
    given = inputs()
    with torch.inference_mode():
        states = base.encode_captions(given["captions"], ClipTextOptions())
        return base.predict(given["noisy"], given["timesteps"], states)


def with_file(base: stable_diffusion.StableDiffusion, path: Path) -> torch.Tensor:
    with applied(base.lora_targets(), [(AdapterFile(path), 1.0)]):
        return predicted(base)


def in_diffusers(path: Path) -> torch.Tensor:
    """Return the prediction of diffusers' own pipeline after `load_lora_weights`."""
    base = sd15.tiny(0)
    pipeline = StableDiffusionPipeline(
        vae=base.vae,
        text_encoder=base.text_encoder,
        tokenizer=base.tokenizer,
        unet=base.unet,
        scheduler=DDPMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.load_lora_weights(path.parent, weight_name=path.name)  # raises on keys it cannot place
    adapters = pipeline.get_list_adapters()
    assert set(adapters) == {"unet", "text_encoder"}
    loaded = sum(
        name.endswith("lora_A.default_0.weight")
        for module in (base.unet, base.text_encoder)
        for name, _ in module.named_parameters()
    )
    assert loaded == len(LoraFile(path).modules)
    return predicted(base)


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return float((one - other).abs().max()) <= TOLERANCE * float(other.abs().max())


@pytest.mark.parametrize(("dim", "conv_dim"), [(2, None), (3, 1)])
def test_diffusers_gives_our_prediction_with_every_key_used(
    base: stable_diffusion.StableDiffusion, source: Path, dim: int, conv_dim: int | None
) -> None:
    small = resized(source, dim=dim, conv_dim=conv_dim)
    ours = with_file(base, small)
    assert close(in_diffusers(small), ours)
    # Resizing did something, and the LoRA does something: else any tolerance would hold.
    assert not close(ours, with_file(base, source))
    assert not close(ours, predicted(base))


def test_a_file_resized_to_its_own_dim_changes_no_prediction(
    base: stable_diffusion.StableDiffusion, source: Path
) -> None:
    assert close(with_file(base, resized(source, dim=6)), with_file(base, source))


def test_the_resized_layers_are_the_best_of_their_dim(
    base: stable_diffusion.StableDiffusion, source: Path
) -> None:
    targets = base.lora_targets()
    changes = []
    before = [supported(target.module).weight.detach().clone() for target in targets]
    for path in (resized(source, dim=2), source):
        with applied(targets, [(AdapterFile(path), 1.0)]):
            changes.append(
                {
                    target.name: supported(target.module).weight.detach() - weight
                    for target, weight in zip(targets, before, strict=True)
                }
            )
    small, large = changes
    file = LoraFile(source)
    assert len(file.modules) == len(targets)
    for name in file.modules:
        factors = layer_factors(file, name)
        lost = sum(value**2 for value in decompose(factors).singular_values[2:]) ** 0.5
        assert float((large[name] - small[name]).norm()) == pytest.approx(
            lost * factors.scale, rel=1e-3, abs=1e-4 * float(large[name].norm())
        )


def test_a_lora_of_another_base_is_told_by_its_layers(
    base: stable_diffusion.StableDiffusion, source: Path
) -> None:
    targets = base.lora_targets()
    assert misfits(targets, AdapterFile(source), base="tiny") == []
    tensors = read_lora(source)[0]
    name = next(iter(LoraFile(source).modules))
    up = tensors[f"{name}.lora_up.weight"]
    tensors[f"{name}.lora_up.weight"] = torch.cat([up, up[:1]])
    for suffix in ("lora_up.weight", "lora_down.weight"):
        tensors[f"lora_unet_none.{suffix}"] = torch.ones(2, 2)
    other = write_lora(source.with_name("other.safetensors"), tensors)
    (problem,) = misfits(targets, AdapterFile(other), base="tiny")
    assert f"no place for 1 of {len(targets) + 1} layers: lora_unet_none" in str(problem)
    assert name in str(problem)
