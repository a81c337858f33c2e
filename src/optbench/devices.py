"""The device and precision a run computes with, as accelerate sees them."""

from __future__ import annotations

import importlib.util
import os
import shutil

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

from optbench.errors import ConfigError, Problem
from optbench.options import TrainOptions


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
            found=found,
            expected=expected,
            where="train",
            fix="leave train.device=auto, and on a CPU train.mixed_precision=no and "
            "train.attention=sdpa, train.torch_compile=false",
        )
    )
