"""What must be true of a run that continues a LoRA file of kohya's trainer."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from optbench.lora.file import read_lora
from optbench.lora.initial_weights import METADATA_KEY
from tests.end_to_end.conftest import Command, one_run


@pytest.fixture(scope="module")
def kohya_file(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file as older tools write it: bf16, no alphas, no metadata, and weights that count.

    Its layers are those of the base, of which the finished run's file has them all.
    """
    tensors, _ = read_lora(finished / "lora" / f"{finished.name}.safetensors")
    draw = torch.Generator().manual_seed(5)
    drawn = {
        key: (torch.randn(one.shape, generator=draw) / 20).bfloat16()
        for key, one in tensors.items()
        if not key.endswith("alpha")
    }
    path = tmp_path_factory.mktemp("kohya") / "from kohya.safetensors"
    safetensors.torch.save_file(drawn, path)
    return path


def test_it_goes_on_from_every_weight_and_says_so(
    command: Command, kohya_file: Path, tmp_path: Path
) -> None:
    extra = [f"network.weights='{kohya_file}'", "network.alpha=4", "render=off"]
    extra += ["lr_mult=1e-6", "train.save_precision=float", "optimizer=lion"]
    command.run(tmp_path, extra)
    run = one_run(tmp_path)
    assert "-continues_" in run.name
    tensors, metadata = read_lora(run / "lora" / f"{run.name}.safetensors")
    before, _ = read_lora(kohya_file)
    moved = [float((tensors[key] - before[key].float()).abs().max()) for key in before]
    assert 0 < max(moved) < 1e-3, "a tiny rate leaves every weight where the file has it"
    assert {float(one) for key, one in tensors.items() if key.endswith("alpha")} == {4.0}
    assert json.loads(metadata[METADATA_KEY])["name"] == "from kohya"
    said = json.loads((run / "provenance.json").read_text())
    assert any("continues from kohya" in line for line in said["notices"])
    assert "network.weights" in said["changed"]


def test_it_can_be_killed_and_ends_bit_identical(
    command: Command, kohya_file: Path, tmp_path: Path
) -> None:
    extra = [f"network.weights='{kohya_file}'", "network.dim_from_weights=true", "render=off"]
    extra = [*extra, "train.epochs=4", "optimizer=adamw"]
    # The file's sizes are taken, so none may be asked for; the small job asks for a dim.
    job = command.without("network.dim=")
    job.run(tmp_path / "whole", extra)
    process = job.start(tmp_path / "killed", extra)
    deadline = time.monotonic() + 600
    while not list((tmp_path / "killed").glob("*/*/state/last.pt")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    whole, killed = one_run(tmp_path / "whole"), one_run(tmp_path / "killed")
    num_before = len(list((killed / "lora").iterdir()))
    job.run(tmp_path / "killed", extra)
    names = sorted(path.name for path in (whole / "lora").iterdir())
    assert num_before < len(names), "the kill came too late to prove anything"
    for name in names:
        assert (whole / "lora" / name).read_bytes() == (killed / "lora" / name).read_bytes()


def test_another_dim_is_refused_before_anything_is_written(
    command: Command, kohya_file: Path, tmp_path: Path
) -> None:
    done = command.run(tmp_path / "runs", [f"network.weights='{kohya_file}'"], code=2)
    assert "network.dim=4 network.alpha=2" in done.stderr
    assert "dim 4 alpha 4" in done.stderr
    assert not (tmp_path / "runs").exists()
