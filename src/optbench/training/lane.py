"""A lane of a training pass: one network, what trains it, and how far it has come."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from optbench.contracts import BaseModel, Network, StepOptimizer
from optbench.models.device import free_memory
from optbench.storage.rundir import RunDir
from optbench.training.plan import RunPlan

if TYPE_CHECKING:
    import torch

    from optbench.training.progress import RunProgress
    from optbench.training.trackers import Trackers
    from optbench.training.validation import Validator


@dataclass(slots=True, kw_only=True)
class PartialEpoch:
    """What a lane has trained of the epoch in progress."""

    rows: list[dict[str, float | int]] = field(default_factory=list)  # one per step taken in it
    # Where the lane's own stream of the global generators stands (training/global_rng.py); None:
    # they are not the lane's own, but as they stand.
    generators: dict[str, Any] | None = None
    max_norms: Mapping[str, float] = field(default_factory=dict)  # of the last step's max-norm


@dataclass(slots=True, kw_only=True)
class Lane:
    """One network and what trains it; several lanes may share a base and its batches."""

    network: Network
    optimizer: StepOptimizer
    scaler: torch.amp.GradScaler | None = None  # its own: an overflow is one lane's alone
    step: int = 0  # optimizer updates taken
    partial: PartialEpoch = field(default_factory=PartialEpoch)
    error: Exception | None = None  # not None: the lane has left the pass

    def end(self, error: Exception) -> None:
        """Take the lane out of the pass and give its memory back to the others."""
        self.error = error
        for weight in self.optimizer.parameters():
            weight.grad = None
        # The traceback's frames hold activations: after an out of memory, what the others lack.
        traceback.clear_frames(error.__traceback__)
        free_memory()

    @contextlib.contextmanager
    def ends_by_error(self) -> Iterator[None]:
        """Let what is raised inside end this lane only."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - one lane's error must not end the others
            self.end(error)


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedEpoch:
    """The last epoch that a run has trained to its end."""

    epoch: int = 0  # 0: none yet
    step: int = 0
    row: dict[str, Any] | None = None  # its record, before its images


@dataclass(slots=True, kw_only=True)
class RunLane(Lane):
    """The lane of a planned run: it writes into the run's folder."""

    plan: RunPlan
    run: RunDir
    base: BaseModel
    progress: RunProgress
    finished: FinishedEpoch = FinishedEpoch()
    notices: list[str] = field(default_factory=list)
    validator: Validator | None = None
    num_rendered: int = 0  # images by this process
    num_measured: int = 0  # epochs by this process
    trackers: Trackers | None = None  # begun when the run's provenance is written
