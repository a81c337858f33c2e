"""The end of a training on the screen: the report's headline and a short table of its settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from optbench.report.summary import SettingLine, read_summary
from optbench.report.wording import NONE
from optbench.terminal import Terminal

MAX_LINES = 10  # of the table, with its head and the line that says how many more there are
_WIDTH_OF_LOGS = 200


def print_closing(page: Path, terminal: Terminal) -> None:
    """Print what a report says in a headline and at most `MAX_LINES` lines; nothing without runs.

    Args:
        page: The report's page; its summary lies beside it.
        terminal: Where to.
    """
    summary = read_summary(page.parent)
    if summary is None or not summary.headline:
        return
    terminal.print()
    terminal.print(Text(summary.headline, style="bold"))
    if len(summary.lines) > 1 and any(line.gain != NONE for line in summary.lines):
        shown = summary.lines
        if len(shown) >= MAX_LINES:
            shown = shown[: MAX_LINES - 2]
        width = None if terminal.is_terminal else _WIDTH_OF_LOGS
        terminal.print(_table(summary.gain_title, shown), width=width)
        if num_more := len(summary.lines) - len(shown):
            terminal.print(Text(f"and {num_more} more settings in the report", style="dim"))
    terminal.print()


def _table(gain_title: str, lines: Sequence[SettingLine]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("setting", overflow="fold")
    table.add_column(gain_title, justify="right", no_wrap=True)
    table.add_column("behind the best (95 %)", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    for line in lines:
        table.add_row(*map(Text, (line.label, line.gain, line.interval, line.time)))
    return table
