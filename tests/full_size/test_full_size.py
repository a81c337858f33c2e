"""Checkpoints of the published architectures: load, train two steps, resume, load in diffusers.

Their weights are random. One family needs up to 12 GB of memory and 8 GB of disk; choose with -k.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from optbench.models import load_base
from optbench.schema import BaseOptions

pytestmark = [pytest.mark.full_size, pytest.mark.slow, pytest.mark.timeout(3 * 3600)]

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
NUM_LAYERS = {"sd15": 72 + 278, "sd2": 138 + 278, "sdxl": 264 + 788}
FREE_BYTES = {"sd15": 6e9, "sd2": 6e9, "sdxl": 12e9}
# The design's bar for what loading takes, beside the libraries' own memory.
MAX_RATIO = 1.2


@pytest.fixture(scope="module", params=NUM_LAYERS)
def family(request: pytest.FixtureRequest) -> str:
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    if free < FREE_BYTES[request.param]:
        pytest.skip(f"{free / 1e9:.1f} GB of memory are free")
    return str(request.param)


@pytest.fixture(scope="module")
def checkpoint(family: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp(family) / f"{family}.safetensors"
    run([str(HERE / "make_checkpoint.py"), family, str(path)])
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    (root / "1_thing").mkdir()
    Image.new("RGB", (128, 128), (200, 90, 40)).save(root / "1_thing" / "0.png")
    (root / "1_thing" / "0.txt").write_text("thing, blue sky")
    return root


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}


def run(command: Sequence[str]) -> str:
    done = subprocess.run(
        [sys.executable, *command], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def arguments(family: str, checkpoint: Path, data: Path, runs_dir: Path) -> list[str]:
    extra = ["base.v_parameterization=true"] if family == "sd2" else []
    return [
        *("-m", "optbench", f"base={family}", f"base.path={checkpoint}", *extra),
        *("dataset=folder", f"dataset.dir={data}", "dataset.resolution=[128,128]"),
        *("dataset.min_bucket_reso=64", "prompts=folder", "prompts.prompts.a.text=thing"),
        *("render=off", "network=locon", "network.dim=4", "train.epochs=2"),
        *("train.mixed_precision=bf16", f"runs_dir={runs_dir}", f"cache_dir={data / 'cache'}"),
    ]


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_loading_takes_little_more_than_the_weights(
    family: str, checkpoint: Path, dtype: str
) -> None:
    if (family, dtype) == ("sdxl", "fp32"):
        pytest.skip("14 GB of weights")
    lines = run([str(HERE / "measure_loading.py"), family, str(checkpoint), dtype]).splitlines()
    found = json.loads(lines[-1])
    sys.stdout.write(f"{family} {dtype}: {found}\n")
    assert found["ratio_without_libraries"] <= MAX_RATIO


def test_two_steps_give_a_file_that_diffusers_loads_and_a_killed_run_the_same_one(
    family: str, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    run(arguments(family, checkpoint, data, tmp_path / "whole"))
    whole = lora_of(tmp_path / "whole")
    command = [sys.executable, *arguments(family, checkpoint, data, tmp_path / "killed")]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL)
    while process.poll() is None and not list((tmp_path / "killed").glob("*/*/state/*")):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run(arguments(family, checkpoint, data, tmp_path / "killed"))
    assert lora_of(tmp_path / "killed").read_bytes() == whole.read_bytes()
    with safe_open(whole, "pt") as file:
        names = [name for name in file.keys() if name.endswith("lora_down.weight")]  # noqa: SIM118
        assert any(bool(file.get_tensor(n.replace("down", "up")).any()) for n in names)
    assert len(names) == NUM_LAYERS[family]
    assert num_loaded_by_diffusers(family, checkpoint, whole) == len(names)


def lora_of(runs_dir: Path) -> Path:
    (status,) = runs_dir.glob("*/*/status.json")
    assert json.loads(status.read_text(encoding="utf-8"))["status"] == "done"
    return status.parent / "lora" / f"{status.parent.name}.safetensors"


def num_loaded_by_diffusers(family: str, checkpoint: Path, lora: Path) -> int:
    """Return how many layers diffusers gives a LoRA to; it raises on keys it cannot place."""
    import diffusers

    options = BaseOptions(
        name=family,
        family=family,
        path=str(checkpoint),
        vae=None,
        v_parameterization=False,
        lr_scale=1.0,
        lr_scales={},
    )
    base: Any = load_base(options, device=torch.device("cpu"), dtype=torch.float16)
    parts: dict[str, Any] = {"unet": base.unet, "vae": base.vae, "scheduler": None}
    if family == "sdxl":
        parts |= dict(zip(("text_encoder", "text_encoder_2"), base.text_encoders, strict=True))
        parts |= dict(zip(("tokenizer", "tokenizer_2"), base.tokenizers, strict=True))
        pipeline: Any = diffusers.StableDiffusionXLPipeline(**parts, add_watermarker=False)
    else:
        parts |= {"text_encoder": base.text_encoder, "tokenizer": base.tokenizer}
        parts |= {"safety_checker": None, "feature_extractor": None}
        parts["scheduler"] = diffusers.DDIMScheduler(clip_sample=False, steps_offset=1)
        pipeline = diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)
    pipeline.load_lora_weights(lora.parent, weight_name=lora.name)
    trained = [part for name, part in parts.items() if name.startswith(("unet", "text_encoder"))]
    return sum("lora_A" in name for part in trained for name, _ in part.named_parameters())
