"""How long resizing a LoRA of SD1.5's shapes takes, with loading and saving, and in what memory.

Prints for two files of 350 layers (dim 16 and dim 512, fp16, random weights): seconds of wall and
of CPU time for one `sv_ratio` resize, and the process's peak memory beyond that of importing
torch, as a multiple of the source's size. Asserts nothing. Each is measured in a process of its
own, because a process's peak is kept for its life. The bars are 2 s, and 40 s within 3 times the
size, on 2 cores. Random weights are the hard case: their singular values hardly fall, so nearly
every direction within `new_dim` is kept.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import safetensors.torch
import torch

from optbench.lora.resize.resize import Result, write_resized
from optbench.lora.resize.rules import SizeRule

NEW_DIMS = {16: 4, 512: 128}
KIB = 1024
STATUS = Path("/proc/self/status")


def main() -> None:
    """Make and measure both files, or one of them where a process is asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", type=Path)
    parser.add_argument("--new-dim", type=int)
    asked = parser.parse_args()
    if asked.measure is not None:
        measure(asked.measure, asked.new_dim)
        return
    for dim, new_dim in NEW_DIMS.items():
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / f"dim{dim}.safetensors"
            write(source, dim)
            command = [sys.executable, __file__, "--measure", source, "--new-dim", str(new_dim)]
            subprocess.run(command, check=True)


def write(path: Path, dim: int) -> None:
    """Write a LoRA on every layer that kohya's trainer gives one in SD1.5, 3x3 ones included."""
    draw = torch.Generator().manual_seed(0)
    tensors = {}
    for number, (outputs, *inputs) in enumerate(layers()):
        tail = [1 for _ in inputs[1:]]
        for kind, shape in (("up", [outputs, dim, *tail]), ("down", [dim, *inputs])):
            weights = torch.randn(shape, generator=draw) / 50
            tensors[f"lora_unet_{number}.lora_{kind}.weight"] = weights.half()
    safetensors.torch.save_file(tensors, path)


def layers() -> list[tuple[int, ...]]:
    """Return the shapes of SD1.5's 350 layers: 72 of the text encoder, 278 of the unet."""
    found: list[tuple[int, ...]] = []
    for _ in range(12):
        found += [(768, 768)] * 4 + [(3072, 768), (768, 3072)]
    for width, count in ((320, 5), (640, 5), (1280, 6)):
        for _ in range(count):
            found += [(width, width, 1, 1)] * 2 + [(width, width)] * 6 + [(width, 768)] * 2
            found += [(8 * width, width), (width, 4 * width)]
    resnets = [(320, 320)] * 2 + [(640, 320), (640, 640), (1280, 640)] + [(1280, 1280)] * 5
    resnets += [(1280, 2560)] * 5 + [(1280, 1920), (640, 1920), (640, 1280), (640, 960)]
    resnets += [(320, 960), (320, 640), (320, 640)]
    for outputs, inputs in resnets:
        found += [(outputs, inputs, 3, 3), (outputs, outputs, 3, 3), (outputs, 1280)]
        found += [(outputs, inputs, 1, 1)] if outputs != inputs else []
    return found + [(width, width, 3, 3) for width in (320, 640, 1280, 1280, 1280, 640)]


def measure(source: Path, new_dim: int) -> None:
    """Resize one file and print what that took."""
    rule = SizeRule(method="sv_ratio", param=128.0, dim=new_dim, conv_dim=None, compat="v0.11")
    wanted = Result(name="small", rule=rule, precision="fp16", weights=None)
    target = source.with_name("small.safetensors")
    before, cpu, wall = peak_bytes(), time.process_time(), time.perf_counter()
    records = write_resized([source], target, wanted)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    size = source.stat().st_size
    print(
        f"{source.stem}: {len(records)} layers, {size / 1e6:.1f} MB -> "
        f"{target.stat().st_size / 1e6:.1f} MB at dim {new_dim}; {wall:.2f} s, {cpu:.2f} CPU s, "
        f"threads {torch.get_num_threads()}, memory {(peak_bytes() - before) / size:.2f} x the file"
    )


def peak_bytes() -> int:
    """Return the most memory this process has used; getrusage would count the parent's, too."""
    (line,) = (one for one in STATUS.read_text().splitlines() if one.startswith("VmHWM:"))
    return int(line.split()[1]) * KIB


if __name__ == "__main__":
    main()
