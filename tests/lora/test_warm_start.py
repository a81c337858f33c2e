"""A network that begins where a LoRA file ends: the same weights, all of them, or a refusal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from optbench.errors import ConfigError, DamagedFileError, Problem
from optbench.lora.initial_weights import initial_weights_of
from optbench.lora.network import LoraNetwork, build_network
from optbench.lora.warm_start import begin_network
from optbench.schema import NetworkOptions
from tests.builders.lora_files import write_lora
from tests.builders.small_training import NETWORK, SmallBase

WHOLE = replace(NETWORK, conv_dim=3, conv_alpha=2.0)


def kohya_file(path: Path, *, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """Write what kohya's trainer would for the small base, with weights drawn anew."""
    draw = torch.Generator().manual_seed(3)
    tensors = build_network(SmallBase().lora_targets(), replace(WHOLE, **changes), seed=1)
    return write_lora(
        path,
        {
            key: (one if key.endswith("alpha") else torch.randn(one.shape, generator=draw)).to(
                dtype
            )
            for key, one in tensors.state_dict().items()
        },
    )


def begin(options: NetworkOptions, *, base: SmallBase | None = None, seed: int = 7) -> LoraNetwork:
    initial = initial_weights_of(options)
    return begin_network((base or SmallBase()).lora_targets(), options, seed=seed, initial=initial)


def problems_of(options: NetworkOptions, *, base: SmallBase | None = None) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        begin(options, base=base)
    return caught.value.problems


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor.float()), key


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_weight_is_the_files_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    path = kohya_file(tmp_path / "a.safetensors", dtype=dtype)
    network = begin(replace(WHOLE, weights=str(path)))
    assert_same(network.state_dict(), load_file(path))


def test_without_a_file_nothing_is_other_than_before() -> None:
    fresh = build_network(SmallBase().lora_targets(), WHOLE, seed=7)
    assert_same(begin(WHOLE).state_dict(), fresh.state_dict())


def test_alphas_that_are_not_in_the_file_are_the_dim(tmp_path: Path) -> None:
    tensors = load_file(kohya_file(tmp_path / "a.safetensors"))
    bare = {key: one for key, one in tensors.items() if not key.endswith("alpha")}
    path = write_lora(tmp_path / "bare.safetensors", bare)
    network = begin(replace(WHOLE, weights=str(path), dim_from_weights=True))
    state = network.state_dict()
    for key in bare:
        assert torch.equal(state[key], bare[key])
    dims = {key: one.shape[0] for key, one in bare.items() if "down" in key}
    for key, dim in dims.items():
        assert state[key.replace("lora_down.weight", "alpha")] == dim


def test_a_rounded_alpha_stays_the_settings_own(tmp_path: Path) -> None:
    path = kohya_file(tmp_path / "a.safetensors", dtype=torch.bfloat16, alpha=0.333)
    network = begin(replace(WHOLE, weights=str(path), alpha=0.333))
    alphas = {float(one) for key, one in network.state_dict().items() if key.endswith("alpha")}
    assert alphas == {torch.tensor(0.333).item(), 2.0}


def test_every_layer_takes_its_own_size_from_the_file(tmp_path: Path) -> None:
    tensors = load_file(kohya_file(tmp_path / "a.safetensors"))
    for key in ("lora_te_text.lora_down.weight", "lora_te_text.lora_up.weight"):
        tensors[key] = torch.cat([tensors[key]] * 2, dim=0 if "down" in key else 1)
    tensors["lora_te_text.alpha"] = torch.tensor(0.25)
    path = write_lora(tmp_path / "mixed.safetensors", tensors)
    options = replace(NETWORK, weights=str(path), dim_from_weights=True)
    network = begin(options)
    assert_same(network.state_dict(), tensors)
    (text,) = (layer for layer in network._layers if layer.name == "lora_te_text")
    assert text.scale == 0.25 / (2 * NETWORK.dim)


def test_layers_on_one_side_only_are_refused_with_their_names(tmp_path: Path) -> None:
    tensors = load_file(kohya_file(tmp_path / "a.safetensors"))
    fewer = {key: one for key, one in tensors.items() if "lora_unet_out" not in key}
    path = write_lora(tmp_path / "fewer.safetensors", fewer)
    (problem,) = problems_of(replace(WHOLE, weights=str(path)))
    assert "1 of 3 layers: lora_unet_out" in problem.found
    assert "dim_from_weights" in problem.fix
    network = begin(replace(WHOLE, weights=str(path), dim_from_weights=True))
    assert_same(network.state_dict(), fewer)
    renamed = {key.replace("unet_out", "unet_elsewhere"): one for key, one in tensors.items()}
    path = write_lora(tmp_path / "other.safetensors", renamed)
    for flag in (False, True):
        (problem,) = problems_of(replace(WHOLE, weights=str(path), dim_from_weights=flag))
        assert "lora_unet_elsewhere" in problem.found


def test_layers_of_another_base_are_refused_by_shape(tmp_path: Path) -> None:
    tensors = load_file(kohya_file(tmp_path / "a.safetensors"))
    key = "lora_te_text.lora_down.weight"
    tensors[key] = torch.cat([tensors[key]] * 2, dim=1)
    path = write_lora(tmp_path / "wide.safetensors", tensors)
    (problem,) = problems_of(replace(WHOLE, weights=str(path)))
    assert key in problem.found


def test_another_scale_in_one_layer_is_refused(tmp_path: Path) -> None:
    tensors = load_file(kohya_file(tmp_path / "a.safetensors"))
    tensors["lora_unet_out.alpha"] *= 2
    path = write_lora(tmp_path / "louder.safetensors", tensors)
    (problem,) = problems_of(replace(WHOLE, weights=str(path)))
    assert "lora_unet_out" in problem.found
    assert "alphas" in problem.found


def test_a_part_that_is_not_trained_stays_in_its_file(tmp_path: Path) -> None:
    path = kohya_file(tmp_path / "a.safetensors")
    network = begin(replace(WHOLE, weights=str(path), train_text_encoder=False))
    unet = {key: one for key, one in load_file(path).items() if "unet" in key}
    assert_same(network.state_dict(), unet)


def test_a_file_that_changes_after_it_was_judged_is_refused(tmp_path: Path) -> None:
    path = kohya_file(tmp_path / "a.safetensors")
    options = replace(WHOLE, weights=str(path))
    initial = initial_weights_of(options)
    tensors = load_file(path)
    tensors["lora_unet_out.lora_up.weight"] = tensors["lora_unet_out.lora_up.weight"] + 1
    write_lora(path, tensors)
    with pytest.raises(DamagedFileError, match="a moment ago"):
        begin_network(SmallBase().lora_targets(), options, seed=7, initial=initial)
