"""The bar a person watches: the run's loss, rate, speed and time left, and the sweep's."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from optbench.records import StepRecord

_SMOOTHING = 0.05  # weight of the newest loss in the number shown


class RunProgress:
    """A bar over one run's steps; on a screen that is no terminal, one line per epoch."""

    def __init__(
        self, name: str, *, num_steps: int, num_steps_done: int, run_index: int, num_runs: int
    ) -> None:
        """Prepare the bar of run `run_index` of `num_runs` (0: their number is not known)."""
        self._console = Console(file=sys.stderr, soft_wrap=True, highlight=False)
        place = f"run {run_index + 1}/{num_runs}  " if num_runs > 1 else ""
        self._label = f"{place}{name}"
        self._num_runs_left = max(0, num_runs - run_index - 1)
        self._num_steps = num_steps
        self._first_step = num_steps_done
        self._step = num_steps_done
        self._loss: float | None = None
        self._started = time.monotonic()
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(
            self._label, total=num_steps, completed=num_steps_done, numbers=""
        )

    def __enter__(self) -> RunProgress:
        """Show the bar."""
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the bar away, whatever happened."""
        self._bar.stop()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, markup=False)

    def advance(self, record: StepRecord) -> None:
        """Show one more step."""
        self._step = record.step
        before = record.loss if self._loss is None else self._loss
        self._loss = before + _SMOOTHING * (record.loss - before)
        rates = " ".join(f"{group} {rate:.1e}" for group, rate in record.effective_lr.items())
        self._bar.update(
            self._task,
            completed=record.step,
            numbers=f"loss {self._loss:.4f}  lr {rates}  {self._pace()}",
        )

    def end_epoch(self, epoch: int, *, mean_loss: float) -> None:
        """Leave one line per epoch where no bar can be drawn, as in a log file."""
        if not self._console.is_terminal:
            self.say(f"{self._label}  epoch {epoch}  loss {mean_loss:.4f}  {self._pace()}")

    def _pace(self) -> str:
        """Return speed and time left, pictures and saving included."""
        seconds = time.monotonic() - self._started
        num_done = self._step - self._first_step
        if num_done == 0 or seconds == 0:
            return ""
        seconds_per_step = seconds / num_done
        run_left = (self._num_steps - self._step) * seconds_per_step
        text = f"{1 / seconds_per_step:.1f} it/s  run {_clock(run_left)} left"
        if self._num_runs_left:
            sweep_left = run_left + self._num_runs_left * self._num_steps * seconds_per_step
            text += f"  sweep {_clock(sweep_left)} left"
        return text


def _clock(seconds: float) -> str:
    """Return 75 as 1:15 and 3675 as 1:01:15."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
