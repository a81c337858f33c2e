"""The device and precision a run computes with, as accelerate sees them."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

from optbench.contracts import BaseModel
from optbench.errors import ConfigError, Problem
from optbench.lora.network import LoraNetwork
from optbench.models import load_base
from optbench.schema import BaseOptions, RunConfig, TrainOptions


def make_accelerator(options: TrainOptions) -> Accelerator:
    """Return accelerate's view of the device and precision a run asks for; sets CPU threads.

    Raises:
        ConfigError: If this machine has no such device, or the device no such precision.
    """
    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)
    kind, _, index = options.device.partition(":")
    devices = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    is_cpu = kind == "cpu" or not any(devices.values())
    if kind in devices and int(index or 0) >= devices[kind]:
        _refuse(f"train.device={options.device}", "a device this machine has")
    if is_cpu and options.mixed_precision == "fp16":
        _refuse("train.mixed_precision=fp16 on a CPU", "no or bf16; fp16 needs a GPU")
    if options.attention == "xformers" and (is_cpu or kind == "mps"):
        _refuse("train.attention=xformers without a GPU of NVIDIA's or AMD's", "sdpa")
    if options.torch_compile and options.dynamo_backend == "inductor":
        _check_inductor(is_cpu=is_cpu)
    if index:
        torch.cuda.set_device(int(index))
    # accelerate keeps these for the life of the process; the next run may ask for another one.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return Accelerator(
        cpu=is_cpu,
        mixed_precision=options.mixed_precision,
        gradient_accumulation_steps=options.gradient_accumulation,
    )


def _check_inductor(*, is_cpu: bool) -> None:
    """Refuse to compile where inductor lacks what makes machine code of its own."""
    compilers = (os.environ.get("CXX", ""), "g++", "clang++", "c++")
    has_cpp = any(name and shutil.which(name) for name in compilers)
    if is_cpu and not has_cpp:
        _refuse("train.torch_compile=true on a CPU without a C++ compiler", "g++ or clang++")
    if not is_cpu and torch.cuda.is_available() and importlib.util.find_spec("triton") is None:
        _refuse("train.torch_compile=true without triton", "its package: pip install triton")


def _refuse(found: str, expected: str) -> None:
    raise ConfigError(
        Problem(
            "train",
            found,
            expected,
            (
                "leave train.device=auto, and on a CPU train.mixed_precision=no and "
                "train.attention=sdpa, train.torch_compile=false"
            ),
        )
    )


_DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def base_for(config: RunConfig, device: torch.device) -> BaseModel:
    """Return the base, computing as this run asks; its weights are shared with other runs."""
    cache_dir = Path(config.cache_dir)
    base = _base(config.base, device, config.train.mixed_precision, cache_dir)
    base = base.for_training(config.loss)
    base.compute_with(
        gradient_checkpointing=config.train.gradient_checkpointing,
        attention=config.train.attention,
        compiled_by=config.train.dynamo_backend if config.train.torch_compile else None,
    )
    return base


@functools.lru_cache(maxsize=1)
def _base(options: BaseOptions, device: torch.device, precision: str, cache_dir: Path) -> BaseModel:
    """Return the base, loaded once per process and shared by its runs."""
    return load_base(options, device=device, dtype=_DTYPES[precision], cache_dir=cache_dir)


def network_to_device(network: LoraNetwork, device: torch.device) -> None:
    """Move the network's parameters in place, before an optimizer sees them."""
    for group in network.parameter_groups():
        for parameter in group.parameters:
            parameter.data = parameter.data.to(device)
