"""Engines for clusters on this one machine: Slurm's daemons on loopback, and Ray's own cluster."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

from tests.torture.commands import Figures, Workplace

_SCRIPT = Path(__file__).with_name("slurm.sh")
_NUM_RUNS = 4


def slurm_campaign() -> Figures:
    """Make four runs through submitit_slurm on a Slurm of our own; nothing where it is missing."""
    done = subprocess.run(
        ["bash", str(_SCRIPT), sys.executable], capture_output=True, text=True, check=False
    )
    lines = done.stdout.strip().splitlines() or [done.stderr[-300:]]
    what = next((line for line in reversed(lines) if line.startswith("slurm:")), lines[-1])
    if "skipped" in what:
        return Figures(name="Slurm", num_tried=0, what=what, losses=())
    losses = () if done.returncode == 0 else (what,)
    return Figures(name="Slurm", num_tried=_NUM_RUNS, what=what, losses=losses)


def ray_campaign(at: Workplace) -> Figures:
    """Make four runs through Ray's local cluster; nothing where the plugin is missing."""
    if importlib.util.find_spec("hydra_plugins.hydra_ray_launcher") is None:
        what = "skipped: pip install -c constraints.txt 'optbench[ray]'"
        return Figures(name="Ray", num_tried=0, what=what, losses=())
    place = at.root / "ray"
    command = [
        *(sys.executable, "-m", "optbench", "-m", "hydra/launcher=optbench_ray"),
        *("network.dim=1,2,3,4", "train.max_steps=3", "render=off", "train.num_threads=1"),
        *("sweep_name=ray", f"runs_dir={place / 'runs'}", f"cache_dir={place / 'cache'}"),
    ]
    # Ray's workers have a low priority otherwise, which on a busy machine is hardly any.
    environment = {**os.environ, "RAY_worker_niceness": "0"}
    subprocess.run(command, env=environment, capture_output=True, check=False)
    ended = [
        json.loads(file.read_text(encoding="utf-8"))["status"]
        for file in sorted((place / "runs" / "ray").glob("*/status.json"))
    ]
    num_done = ended.count("done")
    losses = [f"{_NUM_RUNS - num_done} of {_NUM_RUNS} runs are not done: {ended}"]
    return Figures(
        name="Ray",
        num_tried=_NUM_RUNS,
        what=f"{num_done} of {_NUM_RUNS} runs done through a cluster on this machine",
        losses=tuple(losses if num_done < _NUM_RUNS else ()),
    )
