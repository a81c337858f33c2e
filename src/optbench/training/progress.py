"""Show the run's loss, rates, speed and time left, and the sweep's, while it trains."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from optbench.records import StepRecord
from optbench.terminal import errors

_SMOOTHING = 0.05  # weight of the newest loss in the number shown
_NUM_TIMED_STEPS = 200  # the newest ones, whose median is the speed shown


class RunProgress:
    """Three lines over one run's steps; on a screen that is no terminal, one line per epoch."""

    def __init__(
        self,
        name: str,
        *,
        num_steps: int,
        num_steps_done: int = 0,
        run_index: int,
        num_runs: int,
        has_bar: bool = True,
    ) -> None:
        """Prepare the lines of run `run_index` of `num_runs` (0: their number is not known).

        Without `has_bar` it writes as on no terminal: a screen holds one moving bar.
        """
        self._console = errors()
        self._has_bar = has_bar and self._console.is_terminal
        self._place = f"run {run_index + 1}/{num_runs}  " if num_runs > 1 else ""
        self._name = name
        self._num_runs_left = max(0, num_runs - run_index - 1)
        self._num_steps = num_steps
        self._first_step = num_steps_done
        self._step = num_steps_done
        self._loss: float | None = None
        self._step_seconds: deque[float] = deque(maxlen=_NUM_TIMED_STEPS)
        self._doing = ""
        self._started = time.monotonic()
        self._bar = Progress(
            BarColumn(bar_width=14),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=self._console,
        )
        self._task = self._bar.add_task(name, total=num_steps, completed=num_steps_done, numbers="")
        self._live = Live(console=self._console, get_renderable=self._lines, transient=True)

    def __enter__(self) -> RunProgress:
        """Show the lines."""
        if self._has_bar:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the lines, whatever happened, and leave one with the step reached."""
        if not self._has_bar:
            return
        self._live.stop()
        loss = "" if self._loss is None else f"  loss {self._loss:.4f}"
        seconds = _clock(time.monotonic() - self._started)
        place = f"{self._place}{self._name}"
        self.say(f"{place}  step {self._step}/{self._num_steps}{loss}  {seconds}")

    def resume_at(self, step: int) -> None:
        """Count from this step on: the ones before it were taken by an earlier process."""
        self._first_step = self._step = step
        self._bar.update(self._task, completed=step)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text)

    def advance(self, record: StepRecord) -> None:
        """Show one more step."""
        self._step = record.step
        before = record.loss if self._loss is None else self._loss
        self._loss = before + _SMOOTHING * (record.loss - before)
        self._step_seconds.append(
            record.seconds_data
            + record.seconds_forward
            + record.seconds_backward
            + record.seconds_optimizer
        )
        rates = " ".join(f"{group} {rate:.1e}" for group, rate in record.effective_lr.items())
        numbers = f"loss {self._loss:.4f}  lr {rates}"
        self._bar.update(self._task, completed=record.step, numbers=numbers)

    def end_epoch(self, epoch: int, *, mean_loss: float) -> None:
        """Leave one line per epoch where no bar can be drawn, as in a log file."""
        if not self._has_bar:
            place = f"{self._place}{self._name}"
            self.say(f"{place}  epoch {epoch}  loss {mean_loss:.4f}  {self._pace()}")

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Show what takes the time while no step is taken."""
        self._doing = what
        try:
            yield
        finally:
            self._doing = ""

    def _lines(self) -> Group:
        """Return the run's name with what it is doing, and the bar with its numbers."""
        head = Text(f"{self._place}{self._name}", style="bold", no_wrap=True, overflow="ellipsis")
        pace = Text(self._doing or self._pace(), no_wrap=True, overflow="ellipsis")
        return Group(head, pace, self._bar)

    def _pace(self) -> str:
        """Return the speed of training alone, as the report has it, and the time left with all.

        Saving, validation and rendering are in the time left and not in the speed, which people
        compare with that of other trainers.
        """
        seconds = time.monotonic() - self._started
        num_done = self._step - self._first_step
        if num_done == 0 or seconds == 0:
            return ""
        seconds_per_step = seconds / num_done
        run_left = (self._num_steps - self._step) * seconds_per_step
        step_seconds = statistics.median(self._step_seconds) if self._step_seconds else 0.0
        speed = f"{_speed(step_seconds)}  " if step_seconds > 0 else ""
        text = f"{speed}run {_clock(run_left)} left"
        if self._num_runs_left:
            sweep_left = run_left + self._num_runs_left * self._num_steps * seconds_per_step
            text += f"  sweep {_clock(sweep_left)} left"
        return text


def _speed(step_seconds: float) -> str:
    """Return 0.08 as 12.5 it/s and 3.2 as 3.20 s/it, as other trainers' bars do."""
    return f"{1 / step_seconds:.1f} it/s" if step_seconds < 1 else f"{step_seconds:.2f} s/it"


def _clock(seconds: float) -> str:
    """Return 75 as 1:15 and 3675 as 1:01:15."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
