"""One run, planned: made once while the command line is composed, and passed on from there.

`optbench plan`, the launcher, worker processes (it pickles) and the pipeline all read the same
value; nothing on the way works out again who a run is, and nobody reads its data set twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from optbench.data import HeldOut
from optbench.data.batches import num_batches
from optbench.lora.initial_weights import InitialWeights
from optbench.records import Dataset
from optbench.schema import RunConfig, ValidateOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """A run's settings, its name and fingerprints, its data, and its place in the sweep."""

    config: RunConfig
    overrides: tuple[str, ...] = ()  # what makes it differ from the defaults, as typed
    name: str  # <slug>-<8 hex>: the run's folder
    weights_fingerprint: str  # 16 hex; changes with everything that affects the weights
    base_fingerprint: str
    changed_settings: tuple[str, ...]  # those that affect the weights and are not as shipped
    dataset: Dataset  # what is trained on
    held_out: HeldOut | None = None  # what is not, by validate.holdout
    initial_weights: InitialWeights | None  # the LoRA file that is trained on
    sweep_dir: Path
    until_epoch: int | None = None  # how far it is trained now; None: to its end
    run_index: int = 0
    num_runs: int = 1  # 0: not known, a sweeper plugin decides

    @property
    def run_dir(self) -> Path:
        """The folder the run has or will have."""
        return self.sweep_dir / self.name

    @property
    def num_batches_per_epoch(self) -> int:
        """Batches of an epoch; none mixes buckets, so the last of a bucket may be short."""
        return num_batches(self.dataset, batch_size=self.config.train.batch_size)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer updates of an epoch; a last window of fewer batches counts too."""
        return -(-self.num_batches_per_epoch // self.config.train.gradient_accumulation)

    @property
    def total_steps(self) -> int:
        """Optimizer updates of the whole run: `train.max_steps`, or those of all its epochs."""
        train = self.config.train
        steps = train.epochs * self.steps_per_epoch
        return steps if train.max_steps is None else min(train.max_steps, steps)

    @property
    def num_epochs(self) -> int:
        """Epochs of the whole run; the last one may be cut short by `train.max_steps`."""
        return -(-self.total_steps // max(1, self.steps_per_epoch))

    @property
    def last_step(self) -> int:
        """Up to which update it is trained now; the schedule is that of the whole run."""
        if self.until_epoch is None:
            return self.total_steps
        return min(self.until_epoch * self.steps_per_epoch, self.total_steps)


def holds_out(options: ValidateOptions) -> bool:
    """Return whether some images of the data set are to be validated on instead of trained on."""
    return options.enabled and options.holdout == "auto" and options.dir is None
