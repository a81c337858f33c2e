"""What a person watches: the numbers on a screen, plain lines in a log, names shown as they are."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from optbench.records import StepRecord
from optbench.training import progress
from optbench.training.progress import RunProgress

NAME = "adamw-dim16-0123abcd"
CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


class Screen(io.StringIO):
    """A terminal that remembers everything it was sent."""

    def isatty(self) -> bool:
        return True

    def text(self) -> str:
        return CONTROLS.sub("", self.getvalue())


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    own = Clock()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=own.monotonic))
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return own


@pytest.fixture(autouse=True)
def standard_error_comes_back() -> Iterator[None]:
    before = sys.stderr
    yield
    sys.stderr = before


@pytest.fixture
def log(clock: Clock) -> io.StringIO:
    """Return what stands for a file that standard error goes to."""
    return io.StringIO()


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Screen:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    return Screen()


def watch(file: io.StringIO, name: str = NAME, **changes: Any) -> RunProgress:
    settings: dict[str, Any] = {
        "num_steps": 40, "num_steps_done": 0, "run_index": 0, "num_runs": 1,
    }  # fmt: skip
    # Here and not in a fixture: pytest puts its own in place between a fixture and its test.
    sys.stderr = file
    return RunProgress(name, **(settings | changes))


def record(step: int, loss: float = 0.5, seconds: float = 0.0, **rates: float) -> StepRecord:
    return StepRecord(
        step=step,
        epoch=1,
        loss=loss,
        grad_norm=1.0,
        lr={"unet": 1.0, "text_encoder": 1.0},
        d={},
        effective_lr=rates,
        update_ratio={},
        seconds_data=0.1 * seconds,
        seconds_forward=0.3 * seconds,
        seconds_backward=0.4 * seconds,
        seconds_optimizer=0.2 * seconds,
    )


# In a log


def test_a_log_has_one_plain_line_per_epoch(log: io.StringIO, clock: Clock) -> None:
    with watch(log, run_index=1, num_runs=4) as shown:
        for step in range(1, 11):
            clock.now += 2
            shown.advance(record(step, seconds=0.5, unet=1e-4))
        shown.end_epoch(1, mean_loss=0.123456)
        for step in range(11, 21):
            clock.now += 2
            shown.advance(record(step, seconds=0.5, unet=1e-4))
        shown.end_epoch(2, mean_loss=0.1)
    first, second = log.getvalue().splitlines()
    # 2 s a step: 30 steps left of this run, and two more runs of 40.
    assert first == (
        f"run 2/4  {NAME}  epoch 1  loss 0.1235  2.0 it/s  run 1:00 left  sweep 3:40 left"
    )
    assert second.endswith("epoch 2  loss 0.1000  2.0 it/s  run 0:40 left  sweep 3:20 left")


def test_a_log_holds_no_control_characters_and_no_line_is_folded(
    log: io.StringIO, clock: Clock
) -> None:
    long = "x" * 300
    with watch(log, long) as shown:
        shown.say(f"a notice that is long: {long}")
        clock.now += 1
        shown.advance(record(1, unet=1e-4))
        with shown.doing("saving"):
            pass
        shown.end_epoch(1, mean_loss=0.5)
    text = log.getvalue()
    assert text.count("\n") == 2
    assert text.count(long) == 2
    assert re.fullmatch(r"[\x20-\x7e\n]*", text)


def test_a_run_that_fails_is_not_hidden(log: io.StringIO) -> None:
    with pytest.raises(ZeroDivisionError), watch(log):
        raise ZeroDivisionError


def test_a_single_run_says_nothing_of_a_sweep(log: io.StringIO, clock: Clock) -> None:
    for num_runs in (0, 1):  # 0: a sweeper plugin decides how many there are
        with watch(log, num_runs=num_runs) as shown:
            clock.now += 1
            shown.advance(record(1, seconds=1.0))
            shown.end_epoch(1, mean_loss=0.5)
    for line in log.getvalue().splitlines():
        assert line == f"{NAME}  epoch 1  loss 0.5000  1.00 s/it  run 0:39 left"


def test_the_pace_of_a_run_that_goes_on_counts_only_its_own_steps(
    log: io.StringIO, clock: Clock
) -> None:
    with watch(log, num_steps_done=30) as shown:
        for step in range(31, 36):
            clock.now += 4
            shown.advance(record(step, seconds=4.0))
        shown.end_epoch(7, mean_loss=0.5)
    assert log.getvalue().rstrip().endswith("4.00 s/it  run 0:20 left")


def test_rendering_is_in_the_time_left_and_not_in_the_speed(log: io.StringIO, clock: Clock) -> None:
    with watch(log) as shown:
        for step in range(1, 11):
            clock.now += 1
            # The first one warms up; a median does not see it, as in the report.
            shown.advance(record(step, seconds=0.1 if step > 1 else 1.0))
        with shown.doing("rendering"):
            clock.now += 90
        shown.end_epoch(1, mean_loss=0.5)
    # 100 s for 10 of 40 steps.
    assert "loss 0.5000  10.0 it/s  run 5:00 left" in log.getvalue()


def test_hours_are_shown_as_hours(log: io.StringIO, clock: Clock) -> None:
    with watch(log, num_steps=3676) as shown:
        clock.now += 1
        shown.advance(record(1))
        shown.end_epoch(1, mean_loss=0.5)
    assert "run 1:01:15 left" in log.getvalue()


# On a screen


def test_a_screen_shows_loss_rates_speed_and_time_left(screen: Screen, clock: Clock) -> None:
    with watch(screen, run_index=1, num_runs=4) as shown:
        clock.now += 2
        shown.advance(record(1, loss=1.0, seconds=0.5, unet=1e-4, text_encoder=5e-5))
        clock.now += 2
        shown.advance(record(2, loss=3.0, seconds=0.5, unet=1e-4, text_encoder=5e-5))
    text = screen.text()
    for word in (
        f"run 2/4  {NAME}",
        "2/40",
        "loss 1.1000",  # 1 + 0.05 (3 - 1): smoothed, a step's own loss jumps about
        "unet 1.0e-04",
        "text_encoder 5.0e-05",
        "2.0 it/s",
        "run 1:16 left",
        "sweep 3:56 left",
    ):
        assert word in text, word


def test_a_screen_says_what_takes_the_time_while_no_step_is_taken(screen: Screen) -> None:
    with watch(screen) as shown:
        shown.advance(record(1))
        with shown.doing("rendering epoch 1"):
            shown._live.refresh()
        before = screen.text()
    assert "rendering epoch 1" in before
    assert "rendering epoch 1" not in screen.text()[len(before) :]


def test_a_rate_that_is_not_known_yet_is_left_out(screen: Screen) -> None:
    with watch(screen) as shown:
        shown.advance(record(1))
    assert "loss 0.5000" in screen.text()


@pytest.mark.parametrize("width", [30, 60, 100])
def test_no_line_is_wider_than_the_screen(
    screen: Screen, clock: Clock, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    """The lines are taken away by counting them; a folded one would stay."""
    monkeypatch.setenv("COLUMNS", str(width))
    with watch(screen, "n" * 130, run_index=1, num_runs=12) as shown:
        clock.now += 5000
        shown.advance(record(1, unet=1e-4, text_encoder=5e-5))
        shown._live.refresh()
        drawn = screen.text()
    assert "n" * 10 in drawn
    assert max(len(line) for line in drawn.split("\n")) <= width


@pytest.mark.parametrize("name", ["a[b]c", "[/bold]", "[red]x[/red]", "[link=http://x]y", "\\[x]"])
def test_brackets_are_shown_as_they_are(screen: Screen, name: str) -> None:
    with watch(screen, name) as shown:
        shown.say(f"about {name}")
        shown.advance(record(1))
    text = screen.text()
    assert f"about {name}\n" in text
    lines = [line for line in text.replace(f"about {name}", "").splitlines() if name in line]
    assert len(lines) >= 2  # while it trains, and the line that is left at the end


def test_words_in_colons_are_shown_as_they_are(log: io.StringIO) -> None:
    with watch(log) as shown:
        shown.say("cut: 1girl, :key:, smile")
    assert log.getvalue() == "cut: 1girl, :key:, smile\n"


def test_the_screen_is_given_back_after_an_error(screen: Screen) -> None:
    with pytest.raises(ZeroDivisionError), watch(screen):
        raise ZeroDivisionError
    text = screen.getvalue()
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor, hidden and shown
    # The last line that is left says how far the run got.
    assert "step 0/40" in screen.text().splitlines()[-1]
