"""The weighted sum of LoRA files, among them files that write one layer in two ways."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from optbench.errors import ConfigError
from optbench.lora.file import LoraFile
from optbench.lora.resize.merge import merged_factors, merged_modules
from tests.builders.lora_files import CONV, LINEAR, POINT, random_tensors, write_lora


def products(file: LoraFile, name: str) -> torch.Tensor:
    up, down = (file.tensor(f"{name}.lora_{part}.weight").flatten(1) for part in ("up", "down"))
    return up @ down * (file.alpha(name) / len(down))


@pytest.mark.parametrize("linear_first", [True, False])
def test_a_pointwise_convolution_and_a_linear_layer_are_one_layer(
    tmp_path: Path, linear_first: bool
) -> None:
    first = random_tensors(seed=1)
    second = {
        key: tensor.flatten(1) if key.startswith(f"{POINT}.lora_") else tensor
        for key, tensor in random_tensors(seed=2).items()
    }
    paths = [write_lora(tmp_path / "a.st", first), write_lora(tmp_path / "b.st", second)]
    files = [LoraFile(path) for path in (reversed(paths) if linear_first else paths)]
    modules = merged_modules(files)
    for name in (LINEAR, POINT, CONV):
        factors = merged_factors(name, files, [0.5, 2.0])
        assert factors.up.shape == modules[name].up
        assert factors.down.shape == modules[name].down
        wanted = 0.5 * products(files[0], name) + 2.0 * products(files[1], name)
        made = factors.up.flatten(1) @ factors.down.flatten(1) * factors.scale
        torch.testing.assert_close(made, wanted)
    assert modules[POINT].is_conv is not linear_first


def test_layers_of_other_kernels_are_no_one_layer(tmp_path: Path) -> None:
    tensors = random_tensors()
    down = f"{CONV}.lora_down.weight"
    other = {**tensors, down: tensors[down][..., :1, :1].contiguous()}
    paths = [write_lora(tmp_path / "a.st", tensors), write_lora(tmp_path / "b.st", other)]
    with pytest.raises(ConfigError, match="layers of different sizes"):
        merged_modules([LoraFile(path) for path in paths])
