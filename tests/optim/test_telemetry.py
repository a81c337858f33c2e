"""What an optimizer keeps and how far it moves the weights, against figures worked out by hand."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from torch import nn

from optbench.analysis import load
from optbench.optim import telemetry
from optbench.storage import files, rundir
from optbench.storage.rundir import RunDir


def parameters(*sizes: int) -> list[nn.Parameter]:
    made = []
    for size in sizes:
        one = nn.Parameter(torch.full((size,), 2.0))
        one.grad = torch.ones(size)
        made.append(one)
    return made


def test_state_of_adamw_is_two_numbers_a_weight_and_a_counter_a_tensor() -> None:
    optimizer = torch.optim.AdamW(parameters(10, 6))
    assert telemetry.state_size(optimizer).num_bytes == 0  # before the first update it has none
    optimizer.step()
    found = telemetry.state_size(optimizer)
    assert (found.num_bytes, found.share_8bit) == (2 * 16 * 4 + 2 * 4, 0.0)


def test_small_tensors_of_an_8_bit_class_stay_in_32_bits() -> None:
    large, small = 4096, 1024
    optimizer = bitsandbytes.optim.AdamW8bit(parameters(large, small))
    optimizer.step()
    found = telemetry.state_size(optimizer)
    assert found.share_8bit == large / (large + small)
    assert 2 * large + 8 * small < found.num_bytes < 8 * (large + small)


def test_tensors_deep_in_a_state_are_counted() -> None:
    (one,) = parameters(4)
    optimizer = torch.optim.SGD([one])
    deep: dict[str, Any] = {"list": [torch.zeros(3), {"inner": torch.zeros(5)}], "step": 7}
    optimizer.state[one] = deep
    assert telemetry.state_size(optimizer).num_bytes == (3 + 5) * 4


def test_a_small_8_bit_flag_is_no_8_bit_state() -> None:
    (one,) = parameters(4)
    optimizer = torch.optim.SGD([one])
    optimizer.state[one] = {"average": torch.zeros(4), "flag": torch.zeros(1, dtype=torch.uint8)}
    assert telemetry.state_size(optimizer).share_8bit == 0


def test_ratio_is_the_change_over_the_weights_for_each_group() -> None:
    first, second = parameters(4, 9)
    groups: list[dict[str, Any]] = [
        {"params": [first], "name": "unet"},
        {"params": [second], "name": "text_encoder", "lr": 0.5},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    with telemetry.update_ratios(optimizer, enabled=True) as ratios:
        optimizer.step()
    # Every weight is 2 and moves by its rate, whatever the number of weights.
    assert ratios == pytest.approx({"unet": 0.1 / 2, "text_encoder": 0.5 / 2})
    with telemetry.update_ratios(optimizer, enabled=False) as ratios:
        optimizer.step()
    assert ratios == {}


def test_ratio_of_weights_that_are_all_zero_is_a_number() -> None:
    (one,) = parameters(4)
    one.data.zero_()
    optimizer = torch.optim.SGD([{"params": [one], "name": "unet"}], lr=0.1)
    with telemetry.update_ratios(optimizer, enabled=True) as ratios:
        pass
    assert ratios == {"unet": 0.0}


# In a process of its own, with pages asked of the system itself: a process in which other tests ran
# holds freed memory, from which 64 MiB come without its peak rising at all.
COUNTS_ANEW = """
import mmap
from optbench.training import memory as allocator

def touched(num_bytes):
    pages = mmap.mmap(-1, num_bytes)
    pages.write(b"\\1" * num_bytes)
    return pages

allocator.forget_peak_memory("cpu")
before = allocator.peak_memory_bytes("cpu")
pages = touched(64 * 2**20)
with_pages = allocator.peak_memory_bytes("cpu")
pages.close()
still = allocator.peak_memory_bytes("cpu")
allocator.forget_peak_memory("cpu")
print(before, with_pages, still, allocator.peak_memory_bytes("cpu"))
"""


def test_peak_memory_is_counted_anew() -> None:
    printed = subprocess.run(
        [sys.executable, "-c", COUNTS_ANEW], check=True, capture_output=True, text=True
    ).stdout
    before, with_pages, still, forgotten = map(int, printed.split())
    assert with_pages - before > 48 * 2**20
    assert still >= with_pages
    if Path("/proc/self/clear_refs").is_file():
        assert forgotten < with_pages - 48 * 2**20


def write_run(folder: Path, ds: list[float], **other: list[float]) -> None:
    rows: list[dict[str, Any]] = [
        {"step": step, "epoch": 1, "loss": 0.5, "d/unet": d} for step, d in enumerate(ds, start=1)
    ]
    for name, values in other.items():
        for row, value in zip(rows, values, strict=True):
            row[f"d/{name}"] = value
    run = RunDir(folder / "sweep" / "one")
    rundir.write_status(run.path, "done")
    files.append_rows(run.steps_path, rows)
    files.append_rows(run.layers_path, [{"epoch": 1, "layer": "lora_unet_a", "norm": 0.25}])


@pytest.mark.parametrize(
    ("ds", "expected"),
    [
        ([1e-6, 1e-5, 4e-4, 6e-4, 1e-3, 1e-3], 4),
        ([1e-6, 1e-6, 1e-6], None),  # it never left its start
        ([1e-6, 1e-6, 1e-6, 9e-6], 4),
    ],
)
def test_step_of_escape_is_where_half_of_the_largest_d_is_reached(
    tmp_path: Path, ds: list[float], expected: int | None
) -> None:
    write_run(tmp_path, ds)
    found = load(tmp_path / "sweep").runs["d_escape_step"][0]
    assert (None if math.isnan(found) else found) == expected


def test_the_last_group_to_find_its_d_counts(tmp_path: Path) -> None:
    write_run(tmp_path, [1e-6, 1e-3, 1e-3], text_encoder=[1e-6, 1e-6, 1e-3])
    frames = load(tmp_path / "sweep")
    assert frames.runs["d_escape_step"][0] == 3
    assert frames.layers[["layer", "norm"]].to_dict("records") == [
        {"layer": "lora_unet_a", "norm": 0.25}
    ]
