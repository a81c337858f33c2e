"""The device and precision a run computes with, as accelerate sees them."""

from __future__ import annotations

import importlib.util
import os
import shutil

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

from optbench.errors import ConfigError, Problem
from optbench.models.device import find_device, set_num_threads
from optbench.schema import TrainOptions


def make_accelerator(options: TrainOptions) -> Accelerator:
    """Return accelerate's view of the device and precision a run asks for; sets CPU threads.

    Raises:
        ConfigError: If this machine has no such device, or the device no such precision.
    """
    set_num_threads(options.num_threads)
    device = find_device(options.device, precision=options.mixed_precision, group="train")
    if options.attention == "xformers" and device.type != "cuda":
        raise _refused(
            "train.attention",
            "xformers without a GPU of NVIDIA's or AMD's",
            "sdpa",
            "leave train.attention=sdpa",
        )
    if options.torch_compile and options.dynamo_backend == "inductor":
        # Inductor compiles for a CPU with a C++ compiler, for a GPU with triton.
        compilers = (os.environ.get("CXX", ""), "g++", "clang++", "c++")
        has_cpp = any(name and shutil.which(name) for name in compilers)
        where, fix = "train.torch_compile", "leave train.torch_compile=false"
        if device.type == "cpu" and not has_cpp:
            raise _refused(where, "true on a CPU without a C++ compiler", "g++ or clang++", fix)
        if device.type == "cuda" and importlib.util.find_spec("triton") is None:
            fix = f"pip install triton, or {fix}"
            raise _refused(where, "true without triton", "its package", fix)
    if device.index is not None:
        torch.cuda.set_device(device)
    # accelerate keeps these for the life of the process; the next run may ask for another one.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=options.mixed_precision,
        gradient_accumulation_steps=options.gradient_accumulation,
    )


def _refused(where: str, found: str, expected: str, fix: str) -> ConfigError:
    return ConfigError(Problem(where, found, expected, fix))
