"""Freed memory stays in the process where glibc can be told so, and nothing happens elsewhere."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from optbench.training import memory

# 64 blocks of 24 MB, each freed before the next is asked for: blocks that glibc hands back cost
# their page faults again, 5900 a block.
FAULTS = """
import ctypes, resource, sys
from optbench.training import memory as allocator
took = allocator.keep_freed_memory() if sys.argv[1] == "keep" else None
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
if sys.argv[1] != "keep":
    libc.mallopt(-3, 128 * 1024)  # glibc's own threshold grows with what is freed; hold it
size = 24_000_000
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(64):
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    libc.free(block)
print(took, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

has_glibc = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")


@pytest.mark.skipif(not has_glibc, reason="needs Linux with glibc")
def test_large_blocks_are_cleared_by_the_system_once() -> None:
    faults = {}
    for mode in ("keep", "plain"):
        # A process of its own: malloc cannot be told to forget.
        done = subprocess.run(
            [sys.executable, "-c", FAULTS, mode],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": str(Path(memory.__file__).parents[2])},
        )
        took, num_faults = done.stdout.split()
        faults[mode] = int(num_faults)
        assert took == ("True" if mode == "keep" else "None")
    assert faults["keep"] < faults["plain"] / 10, faults


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str | None) -> None:
        raise OSError("there is no libc here")

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    for platform in ("darwin", "win32"):
        monkeypatch.setattr(sys, "platform", platform)
        assert not memory.keep_freed_memory()


def test_a_libc_without_the_setting_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    assert not memory.keep_freed_memory()


def test_a_refused_setting_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[int, int] = {}

    def mallopt(which: int, value: int) -> int:
        asked[which] = value
        return int(which != -3)

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    assert not memory.keep_freed_memory()
    # mallopt takes an int; a larger number would arrive as a negative one.
    assert all(0 < value < 2**31 for value in asked.values())


def test_an_older_glibc_is_asked_for_the_most_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """It refuses more than HEAP_MAX_SIZE / 2, 32 MiB (malloc.c, do_set_mmap_threshold).

    With the trim threshold set alone, its own threshold stays at 128 KiB and grows no more: more
    blocks go back to the system than without any setting.
    """
    took: dict[int, int] = {}

    def mallopt(which: int, value: int) -> int:
        if which == -3 and value > 32 << 20:
            return 0
        took[which] = value
        return 1

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    assert memory.keep_freed_memory()
    assert took[-3] == 32 << 20
