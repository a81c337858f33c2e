"""A finished or killed run with a damaged file ends as if nothing had happened, and says it.

The real pipeline on the small base, through `make_run` of the killed runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from optbench.storage import files, rundir
from optbench.storage.rundir import RunDir
from optbench.training.plan import RunPlan
from optbench.training.recovery import damage_of
from optbench.training.state import state_files
from tests.launch.test_killed_run import NUM_EPOCHS, loras, make_run, make_run_killed, plan, rows

__all__ = ["plan"]  # the fixture

Damage = Callable[[Path], None]


def flip(path: Path, *, share: float = 0.6) -> None:
    """Turn one bit of a file."""
    content = bytearray(path.read_bytes())
    content[int(len(content) * share)] ^= 4
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def notices(run: RunDir) -> list[str]:
    return list(json.loads(run.provenance_path.read_text())["notices"])


def whole_lora(run: RunDir) -> dict[str, bytes]:
    return {name: content for name, content in loras(run).items() if "damaged" not in name}


def assert_equal_runs(run: RunDir, whole: RunDir) -> None:
    assert whole_lora(run) == whole_lora(whole)
    for name in ("steps.jsonl", "epochs.jsonl", "layers.jsonl", "files.jsonl"):
        assert rows(run.path / name) == rows(whole.path / name)
    assert rundir.read_status(run.path).status == "done"


@pytest.mark.parametrize(
    ("name", "damage", "epoch", "set_aside"),
    [
        ("state/last.pt", flip, 1, True),  # the one before it is there
        ("state/last.pt", cut, 1, True),
        ("state/previous.pt", flip, 2, False),  # nobody needs it
        ("lora/{}-000002.safetensors", cut, 2, True),  # written again from the state
        ("lora/{}-000001.safetensors", flip, 1, True),  # from the state before the last
        ("steps.jsonl", flip, 1, True),
        ("layers.jsonl", flip, 0, True),
        ("files.jsonl", flip, 0, True),
        ("epochs.jsonl", flip, 0, True),
        ("config.yaml", flip, 2, False),  # written anew at every start, as the next one
        ("status.json", flip, 2, False),
    ],
)
def test_a_damaged_file_is_set_aside_and_made_again(
    plan: RunPlan,  # noqa: F811
    tmp_path: Path,
    name: str,
    damage: Damage,
    epoch: int,
    set_aside: bool,
) -> None:
    whole = make_run(plan, tmp_path / "whole")
    # Two whole epochs and their records, killed while it is about to end.
    run, _ = make_run_killed(plan, tmp_path / "killed", before=("append_rows", 8))
    assert [path.name for path in state_files(run)] == ["last.pt", "previous.pt"]
    path = run.path / name.format(run.name)
    damage(path)
    make_run(plan, tmp_path / "killed")
    assert_equal_runs(run, whole)
    aside = path.with_name(f"{path.name}.damaged")
    assert aside.is_file() == set_aside, notices(run)
    said = [line for line in notices(run) if aside.name in line]
    assert bool(said) == set_aside
    if said:
        place = f"epoch {epoch}, the last intact one" if epoch else "the beginning"
        assert notices(run)[-1] == f"resuming from {place}"


def test_a_damaged_list_of_sessions_is_set_aside_and_said(
    plan: RunPlan,  # noqa: F811
    tmp_path: Path,
) -> None:
    whole = make_run(plan, tmp_path / "whole")
    run, _ = make_run_killed(plan, tmp_path / "killed", before=("append_rows", 8))
    cut(run.provenance_path)
    make_run(plan, tmp_path / "killed")
    assert_equal_runs(run, whole)
    assert run.provenance_path.with_name("provenance.json.damaged").is_file()
    assert "who worked on the run before is not known" in notices(run)[-1]


def test_both_states_damaged_the_run_begins_anew(
    plan: RunPlan,  # noqa: F811
    tmp_path: Path,
) -> None:
    whole = make_run(plan, tmp_path / "whole")
    run, _ = make_run_killed(plan, tmp_path / "killed", before=("append_rows", 8))
    for path in state_files(run):
        flip(path)
    make_run(plan, tmp_path / "killed")
    assert_equal_runs(run, whole)
    assert "the beginning" in notices(run)[-1]


def test_records_cut_off_after_whole_lines_are_noticed(
    plan: RunPlan,  # noqa: F811
    tmp_path: Path,
) -> None:
    """No checksum can tell that a line is missing at the end."""
    whole = make_run(plan, tmp_path / "whole")
    for name, num_left in (("steps.jsonl", 7), ("layers.jsonl", 3), ("epochs.jsonl", 0)):
        sweep_dir = tmp_path / name
        run, _ = make_run_killed(plan, sweep_dir, before=("append_rows", 8))
        path = run.path / name
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:num_left]))
        make_run(plan, sweep_dir)
        assert_equal_runs(run, whole)
        assert any(name in line for line in notices(run)), name


def test_a_run_that_is_done_keeps_one_state_and_no_debris(
    plan: RunPlan,  # noqa: F811
    tmp_path: Path,
) -> None:
    run = make_run(plan, tmp_path / "sweep")
    assert [path.name for path in state_files(run)] == ["last.pt"]
    assert not notices(run)
    names = {row["file"] for row in files.read_rows(run.files_path)}
    assert names == set(loras(run))
    assert len(names) == NUM_EPOCHS + 1


def test_a_record_cannot_name_a_file_outside_of_its_folder(
    plan: RunPlan,  # noqa: F811
    tmp_path: Path,
) -> None:
    run, _ = make_run_killed(plan, tmp_path / "sweep", before=("append_rows", 8))
    outside = tmp_path / "precious.txt"
    outside.write_text("not ours")
    for name in (str(outside), "../../../precious.txt"):
        files.append_rows(run.files_path, [{"epoch": 1, "file": name, "sha256": "0"}])
    make_run(plan, tmp_path / "sweep")
    assert outside.read_text() == "not ours"


def test_a_lora_file_somebody_deleted_to_save_room_is_no_loss(
    plan: RunPlan,  # noqa: F811
    tmp_path: Path,
) -> None:
    run = make_run(plan, tmp_path / "sweep")
    run.lora_path(1).unlink()
    make_run(plan, tmp_path / "sweep")
    assert not run.lora_path(1).is_file()
    assert not notices(run)


@pytest.mark.parametrize(
    ("num_kept", "place"),
    [
        (1, "epoch 2, the last intact one"),
        (0, "epoch 1, the last intact one"),
    ],
)
def test_a_lora_file_without_its_record_is_made_again(
    plan: RunPlan,  # noqa: F811
    tmp_path: Path,
    num_kept: int,
    place: str,
) -> None:
    whole = make_run(plan, tmp_path / "whole")
    run, _ = make_run_killed(plan, tmp_path / "killed", before=("append_rows", 8))
    lines = run.files_path.read_bytes().splitlines(keepends=True)
    run.files_path.write_bytes(b"".join(lines[:num_kept]))  # cut off after a whole line
    assert [line for line in damage_of(run) if "no record of" in line]
    make_run(plan, tmp_path / "killed")
    assert_equal_runs(run, whole)
    assert notices(run)[-1] == f"resuming from {place}"
    assert not list(damage_of(run))
