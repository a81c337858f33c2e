"""Hydra plugin: sweep over a list of settings, `settings: {name: "overrides as typed"}`.

Every entry is one run for each member of the product of what else is swept over. Launchers,
callbacks, batches and multirun.yaml are those of Hydra's basic sweeper.
"""

# No `from __future__ import annotations`: Hydra runs this file before it is a known module, and
# dataclasses would look for it to understand annotations that are text.
from dataclasses import dataclass

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override


@dataclass
class ListSweeperConf(BasicSweeperConf):
    """The settings of `hydra/sweeper=list`: those of the basic sweeper."""

    _target_: str = f"{__name__}.ListSweeper"


ConfigStore.instance().store(
    group="hydra/sweeper", name="list", node=ListSweeperConf, provider="optbench"
)


class ListSweeper(BasicSweeper):
    """Hydra's basic sweeper, for which a list of settings is one more axis."""

    def split_arguments(  # type: ignore[override]  # static there, for it needs no settings
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        """Return the overrides of every run, in batches."""
        # Imported here: Hydra looks into its plugins in every program of this environment.
        from optbench.config.sweep import expand
        from optbench.errors import ConfigError, Problem

        assert self.config is not None
        assert self.hydra_context is not None
        problems: list[Problem] = []
        lines = [str(override.input_line) for override in overrides]
        runs, _ = expand(self.hydra_context.config_loader, self.config, lines, problems)
        if problems:
            raise ConfigError(*problems)
        listed = [list(run.overrides) for run in runs]
        return list(self.split_overrides_to_chunks(listed, max_batch_size))
