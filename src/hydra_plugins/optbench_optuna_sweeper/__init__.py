"""Hydra plugin: a search by Optuna, `hydra/sweeper=optbench_optuna`; launch.optuna runs it.

Launchers, callbacks and multirun.yaml are those of Hydra's basic sweeper.
"""

# No `from __future__ import annotations`: Hydra runs this file before it is a known module, and
# dataclasses would look for it to understand annotations that are text.
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class OptunaSweeper(BasicSweeper):
    """Launches what Optuna proposes for every optimizer, until each has had its trials."""

    def __init__(
        self, max_batch_size: int | None, params: dict[str, str] | None = None, **search: Any
    ) -> None:
        """Take the settings of conf/hydra/sweeper/optbench_optuna.yaml."""
        super().__init__(max_batch_size=max_batch_size, params=params)
        self._search = search

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep the task, which knows how runs are made."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self._task: Any = task_function

    def sweep(self, arguments: list[str]) -> Any:
        """Search until every optimizer has had its trials, or one of them cannot go on."""
        # Imported here: Hydra looks into its plugins in every program of this environment.
        from optbench.config.search import read_search
        from optbench.errors import ConfigError, Problem
        from optbench.launch.optuna import run_searches

        assert self.config is not None
        assert self.hydra_context is not None
        assert self.launcher is not None
        problems: list[Problem] = []
        search = read_search(self.hydra_context.config_loader, self.config, arguments, problems)
        if problems or search is None:
            raise ConfigError(*problems)
        sweep_dir = Path(self.config.hydra.sweep.dir)
        sweep_dir.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, sweep_dir / "multirun.yaml")
        return run_searches(search, self._task, self.launcher.launch, sweep_dir)
