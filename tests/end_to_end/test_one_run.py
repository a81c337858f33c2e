"""What must be true of one run: repeatable, undisturbed by rendering, killable, loadable."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from optbench.storage import files, rundir
from tests.end_to_end.conftest import Command, one_run


def lora_bytes(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run / "lora").iterdir())}


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in files.read_rows(run / "steps.jsonl")]


def test_a_run_leaves_everything_schema_1_names(finished: Path) -> None:
    assert json.loads((finished / "status.json").read_text())["status"] == "done"
    assert {path.name for path in (finished / "lora").iterdir()} == {
        f"{finished.name}-000001.safetensors",
        f"{finished.name}-000002.safetensors",
        f"{finished.name}.safetensors",
    }
    for epoch in range(3):
        folder = finished / "images" / f"epoch-{epoch:04d}"
        assert len(list(folder.glob("*.png"))) == 2, folder
    rows = files.read_rows(finished / "steps.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert {"lr/unet", "lr/text_encoder", "effective_lr/unet", "seconds_forward"} <= set(rows[0])
    assert len(files.read_rows(finished / "epochs.jsonl")) == 2
    assert list((finished / "sheets").glob("*.png"))
    assert list((finished / "tensorboard").iterdir())
    assert (finished.parent / "report" / "index.html").is_file()


def test_a_run_records_what_its_optimizer_costs_and_does(finished: Path) -> None:
    epochs = [json.loads(line) for line in (finished / "epochs.jsonl").read_text().splitlines()]
    steps = [json.loads(line) for line in (finished / "steps.jsonl").read_text().splitlines()]
    layers = [json.loads(line) for line in (finished / "layers.jsonl").read_text().splitlines()]
    # AdamW keeps two float32 numbers for each weight, and a counter for each tensor.
    provenance = json.loads((finished / "provenance.json").read_text())
    num_layers = len({row["layer"] for row in layers})
    expected = 8 * provenance["num_parameters"] + 4 * 2 * num_layers
    assert [row["optimizer_state_bytes"] for row in epochs] == [expected] * len(epochs)
    assert {row["optimizer_state_8bit_share"] for row in epochs} == {0}
    for epoch in epochs:
        norms = [row["norm"] for row in layers if row["epoch"] == epoch["epoch"]]
        assert len(norms) == num_layers
        assert max(norms) == epoch["norm/max_key_norm"]
    looked_at = [row["step"] for row in steps if "update_ratio/unet" in row]
    assert looked_at == [row["step"] for row in steps if row["step"] % 10 == 1]
    assert all(0 < row["update_ratio/unet"] < 1 for row in steps if row["step"] in looked_at)


def test_run_again_without_rendering_gives_the_same_bytes(
    command: Command, finished: Path, tmp_path: Path
) -> None:
    command.run(tmp_path, ["render=off"])
    run = one_run(tmp_path)
    assert not list(run.glob("images/epoch-*"))
    assert lora_bytes(run) == lora_bytes(finished)


def test_max_steps_ends_the_run_inside_its_second_epoch(command: Command, tmp_path: Path) -> None:
    command.run(tmp_path, ["train.max_steps=3", "render=off"])
    run = one_run(tmp_path)
    assert [row["step"] for row in files.read_rows(run / "steps.jsonl")] == [1, 2, 3]
    assert len(lora_bytes(run)) == 3  # two epochs, the last one also under the plain name
    assert json.loads((run / "status.json").read_text())["status"] == "done"


@pytest.mark.parametrize("optimizer", [pytest.param("adamw", marks=pytest.mark.slow), "dadaptlion"])
def test_killed_and_run_again_ends_bit_identical(
    command: Command, tmp_path: Path, optimizer: str
) -> None:
    extra = [f"optimizer={optimizer}", "train.epochs=4", "render=off"]
    command.run(tmp_path / "whole", extra)
    process = command.start(tmp_path / "killed", extra)
    deadline = time.monotonic() + 600
    while not list((tmp_path / "killed").glob("*/*/state/last.pt")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    killed = one_run(tmp_path / "killed")
    assert rundir.read_status(killed).status == "interrupted"
    num_before = len(losses(killed))
    command.run(tmp_path / "killed", extra)
    whole = one_run(tmp_path / "whole")
    assert lora_bytes(killed) == lora_bytes(whole)
    assert losses(killed) == losses(whole)
    assert num_before < len(losses(whole)), "the kill came too late to prove anything"


def test_finished_runs_are_not_made_again_and_changed_prompts_only_rendered(
    command: Command, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished.parents[1], tmp_path, dirs_exist_ok=True)
    run = one_run(tmp_path)
    before = (run / "steps.jsonl").stat().st_mtime_ns
    printed = command.run(tmp_path)
    assert printed.stdout.strip().endswith("index.html")
    assert len(list((run / "images" / "epoch-0002").glob("*.png"))) == 2
    command.run(tmp_path, ["render.seeds=[7,8]"])
    assert (run / "steps.jsonl").stat().st_mtime_ns == before
    assert len(list((run / "images" / "epoch-0002").glob("*.png"))) == 4


@pytest.mark.parametrize(
    "network",
    [
        "locon network.rslora=true",
        pytest.param("lora", marks=pytest.mark.slow),
        pytest.param("locon", marks=pytest.mark.slow),
    ],
)
def test_diffusers_loads_every_key_and_draws_our_picture(
    command: Command, tmp_path: Path, network: str
) -> None:
    """The file, loaded by diffusers, must draw what our own merged network drew."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from omegaconf import OmegaConf

    command.run(tmp_path, [*f"network={network}".split(), "network.dim=4", "lr_mult=30"])
    finished = one_run(tmp_path)
    config = OmegaConf.load(finished / "config.yaml")
    pipeline = StableDiffusionPipeline.from_pretrained(
        config.base.path,
        torch_dtype=torch.float32,
        safety_checker=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, clip_sample=False, set_alpha_to_one=False
    )
    lora = finished / "lora" / f"{finished.name}.safetensors"
    pipeline.load_lora_weights(lora.parent, weight_name=lora.name)  # raises on keys it cannot place
    prompt = config.prompts.prompts.a
    ours = finished / f"images/epoch-0002/a-{prompt.width}x{prompt.height}-s7.png"
    theirs = pipeline(
        prompt.text,
        negative_prompt=prompt.negative,
        width=prompt.width,
        height=prompt.height,
        guidance_scale=config.render.cfg_scale,
        num_inference_steps=config.render.steps,
        generator=[torch.Generator().manual_seed(7)],
    ).images[0]
    difference = np.abs(np.asarray(theirs, int) - np.asarray(Image.open(ours), int))
    assert difference.max() <= 2
    base = finished / f"images/epoch-0000/a-{prompt.width}x{prompt.height}-s7.png"
    moved = np.abs(np.asarray(Image.open(base), int) - np.asarray(Image.open(ours), int))
    assert moved.max() > 2, "the LoRA changes nothing, so the comparison proves nothing"
    num_keys = sum(1 for name, _ in pipeline.unet.named_parameters() if "lora_A" in name)
    num_keys += sum(1 for name, _ in pipeline.text_encoder.named_parameters() if "lora_A" in name)
    from safetensors import safe_open

    with safe_open(lora, "pt") as file:
        assert num_keys == sum(1 for key in file.keys() if key.endswith("lora_down.weight"))  # noqa: SIM118
