"""Hydra plugin: a race, `hydra/sweeper=optbench_race`; optbench.launch.race runs it.

Launchers, callbacks and multirun.yaml are those of Hydra's basic sweeper.
"""

# No `from __future__ import annotations`: Hydra runs this file before it is a known module, and
# dataclasses would look for it to understand annotations that are text.
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


@dataclass
class RaceSweeperConf(BasicSweeperConf):
    """The settings of `hydra/sweeper=optbench_race`: those of the basic sweeper."""

    _target_: str = f"{__name__}.RaceSweeper"


ConfigStore.instance().store(
    group="hydra/sweeper", name="optbench_race", node=RaceSweeperConf, provider="optbench"
)


class RaceSweeper(BasicSweeper):
    """Launches what a race asks for next, until it asks for nothing more."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what is launched: optbench's own task, which knows the race."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self._task: Any = task_function

    def sweep(self, arguments: list[str]) -> Any:
        """Run the race that the task was planned for; the command line is read already."""
        # Imported here: Hydra looks into its plugins in every program of this environment.
        from optbench.launch.race import run_race

        assert self.config is not None
        assert self.launcher is not None
        sweep_dir = Path(self.config.hydra.sweep.dir)
        sweep_dir.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, sweep_dir / "multirun.yaml")
        return run_race(self._task, self.launcher.launch)
