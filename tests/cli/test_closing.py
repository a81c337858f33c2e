"""The last screen of a training: a headline, at most ten lines of settings, in the page's words."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from optbench.cli.closing import MAX_LINES, print_closing
from optbench.report import build_report
from optbench.terminal import errors
from tests.builders.fabricated_sweep import Shape, make_sweep


@pytest.mark.parametrize(("num_optimizers", "dims"), [(2, (4, 8)), (6, (4, 8)), (1, (4,))])
def test_the_end_has_the_pages_headline_and_at_most_ten_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_optimizers: int, dims: tuple[int, ...]
) -> None:
    make_sweep(tmp_path / "demo", Shape(num_optimizers=num_optimizers, dims=dims, num_epochs=1))
    page = build_report(tmp_path / "demo")
    screen = io.StringIO()
    monkeypatch.setattr("sys.stderr", screen)
    print_closing(page, errors())
    headline, *table = [line for line in screen.getvalue().splitlines() if line.strip()]
    assert headline in page.read_text().replace("&#39;", "'")
    num_settings = num_optimizers * len(dims)
    if num_settings == 1:
        assert table == []
        return
    assert table[0].split()[0] == "setting"
    assert len(table) == min(MAX_LINES, 1 + num_settings)
    if num_settings >= MAX_LINES:
        shown = MAX_LINES - 2
        assert table[-1].strip() == f"and {num_settings - shown} more settings in the report"


def test_a_folder_without_a_summary_ends_without_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_closing(tmp_path / "index.html", errors())
    assert capsys.readouterr().err == ""
