"""Read and check how a command line launches its runs: group `launch` and Hydra's plugins."""

from __future__ import annotations

from importlib.util import find_spec

from omegaconf import DictConfig

from optbench.config.build import LAUNCH, build_group
from optbench.errors import ConfigError, Problem
from optbench.schema import LaunchOptions

# What a plugin of Hydra's needs: a module that is to be there, and the extra that brings it.
_NEEDS = {
    "hydra_joblib_launcher": ("hydra_plugins.hydra_joblib_launcher", "joblib"),
    "hydra_submitit_launcher": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
    "hydra_ray_launcher": ("hydra_plugins.hydra_ray_launcher", "ray"),
    "optbench_optuna_sweeper": ("optuna", "optuna"),
}


def launcher_options(
    master: DictConfig, *, is_local: bool, problems: list[Problem]
) -> LaunchOptions | None:
    """Return the group `launch`, after noting everything wrong with it and with Hydra's plugins.

    None for commands that make all their runs in their own process.
    """
    problems += _missing_plugins(master)
    if LAUNCH not in master:
        return None
    try:
        options = build_group(LaunchOptions, LAUNCH, master)
    except ConfigError as error:
        problems += error.problems
        return None
    workers = options.workers
    if workers is not None and workers > 1 and options.isolation == "none":
        problems.append(
            Problem(
                "launch.workers",
                f"{workers} runs at a time in one process",
                "a process for each run",
                "leave out launch.isolation=none",
            )
        )
    if workers is not None and not is_local:
        problems.append(
            Problem(
                "launch.workers",
                f"{workers} beside a launcher plugin, which counts its own workers",
                "null",
                "leave it out; set hydra.launcher.n_jobs, array_parallelism or the like instead",
            )
        )
    return options


def at_a_time(master: DictConfig) -> int | None:
    """Return how many runs a launcher plugin makes at a time; None where it does not say."""
    for key in ("n_jobs", "array_parallelism"):
        value = master.hydra.launcher.get(key)
        if isinstance(value, int) and value > 0:
            return value
    return None


def _missing_plugins(master: DictConfig) -> list[Problem]:
    problems = []
    for part in ("launcher", "sweeper"):
        target = str(master.hydra[part]._target_)
        package = target.split(".")[1] if target.startswith("hydra_plugins.") else ""
        if package not in _NEEDS:
            continue
        module, extra = _NEEDS[package]
        if find_spec(module.partition(".")[0]) is None or find_spec(module) is None:
            problems.append(
                Problem(
                    f"hydra/{part}",
                    f"{module.rpartition('.')[2]}, which is not installed",
                    "an installed one",
                    f"pip install -c constraints.txt 'optbench[{extra}]'",
                )
            )
    return problems
