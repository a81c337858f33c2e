"""SD2 and SDXL from a diffusers folder through the whole command line, on small random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from optbench.models import sd2, sdxl
from tests.builders.checkpoint_files import write_folder
from tests.end_to_end.conftest import Command, one_run

FAMILIES: dict[str, Any] = {"sd2": sd2, "sdxl": sdxl}
SAID = {
    "sd2": ("sd_v2_v", "stable-diffusion-v2-768-v/lora", "v"),
    "sdxl": ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora", "epsilon"),
}
# With the states of the last layer but one, the last layer of SDXL's first text encoder learns
# nothing: six of its layers stay as they were, in kohya's files as well.
NUM_IDLE = {"sd2": 0, "sdxl": 6}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_trains_renders_and_says_what_it_is(
    command: Command, tmp_path: Path, family: str
) -> None:
    folder = write_folder(FAMILIES[family].tiny(1), tmp_path / "model")
    command.without("prompts.").run(
        tmp_path / "runs",
        [
            f"base={family}",
            f"base.path={folder}",
            "network=locon",
            "train.max_token_length=150",
            "dataset.flip_aug=true",
            "prompts=folder",
            "prompts.prompts.a.text=thing",
            "prompts.prompts.a.width=128",
            "prompts.prompts.a.height=128",
        ],
    )
    run = one_run(tmp_path / "runs")
    assert (run / "images" / "epoch-0002" / "a-128x128-s7.png").is_file()
    with safe_open(run / "lora" / f"{run.name}.safetensors", "pt") as file:
        said = file.metadata()
        ups = [name for name in file.keys() if name.endswith("lora_up.weight")]  # noqa: SIM118
        idle = [name for name in ups if not file.get_tensor(name).any()]
    version, architecture, prediction = SAID[family]
    assert said["ss_base_model_version"] == version
    assert said["modelspec.architecture"] == architecture
    assert said["modelspec.prediction_type"] == prediction
    assert said["ss_max_token_length"] == "150"
    assert len(ups) == len(FAMILIES[family].tiny(1).lora_targets())
    assert len(idle) == NUM_IDLE[family]
    assert all("lora_te1_text_model_encoder_layers_1_" in name for name in idle)
