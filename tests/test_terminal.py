"""Names of others on the screen: spelled, never obeyed."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from optbench import terminal
from optbench.cli import main as cli
from optbench.errors import Problem
from optbench.storage import rundir

HOSTILE = "a\x1b]0;title\x07\x1b[31m\x9b2J\r\x08[/bold][red]\u202egnp.exe\ud800"
SPELLED = "a\\x1b]0;title\\x07\\x1b[31m\\x9b2J\\x0d\\x08[/bold][red]\\u202egnp.exe\\ud800"
# rich leaves out the bell, the backspace and the return to the line's start by itself.
SHORTER = SPELLED.replace("\\x07", "").replace("\\x0d", "").replace("\\x08", "")


def test_every_character_that_a_terminal_obeys_is_spelled() -> None:
    assert terminal.printable(HOSTILE) == SPELLED
    for text in ("a\tb\nc", "jörg", "색깔", "🙂", "क्‍ष"):  # the last with a joiner
        assert terminal.printable(text) == text


def test_a_table_and_a_line_spell_them_and_know_no_markup(
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = Table("name", title=f"w/my [/runs] {HOSTILE}")
    table.add_row(HOSTILE)
    screen = terminal.output()
    screen.print(table)
    screen.print(HOSTILE)
    screen.print(Text.assemble(("x ", "red"), HOSTILE))
    terminal.say(HOSTILE)
    terminal.tell(HOSTILE)
    out, err = capsys.readouterr()
    assert out.count(SPELLED) == 1
    assert out.count(SHORTER) == 3  # in the table it is broken into lines
    assert err.count(SHORTER) == 1
    assert "[/runs]" in out
    assert not set(out + err) & set("\x1b\x07\x9b\r\x08")


def test_styles_still_reach_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    screen = terminal.errors()
    screen.file = io.StringIO()
    screen.print(Text.assemble(("red", "red"), HOSTILE))
    text = screen.file.getvalue()
    assert text.count("\x1b[") == 2  # on and off
    assert SHORTER in text


def test_commands_spell_what_strangers_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from optbench.cli.command import refuse

    name = HOSTILE.replace("/", "").replace("\ud800", "")
    run_dir = tmp_path / f"runs{name}" / "sweep" / name
    rundir.write_status(run_dir, "running", f"reason {name}")
    refuse([Problem(name, name, name, name)])
    cli.main(["verify", str(tmp_path / f"runs{name}")])
    cli.main(["report", str(tmp_path / f"none{name}")])
    cli.main(["plan", f"runs_dir='{tmp_path}/my [/runs]'", "base=nothing"])
    out, err = capsys.readouterr()
    assert "\\x1b]0;title" in out
    assert "\\x1b]0;title" in err
    assert not set(out + err) & set("\x1b\x07\x9b\r\x08")
