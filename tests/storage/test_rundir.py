"""What a killed process leaves behind can be read, and a dead run is told from a living one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from optbench.errors import DamagedFileError
from optbench.records import Cell
from optbench.storage import files, locks, rundir
from optbench.storage.rundir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "sweep" / "adamw-dim16-0123abcd")


def rewrite_status(run: RunDir, **changes: Any) -> None:
    content = json.loads(run.status_path.read_text())
    content.update(changes)
    del content["sha256"]  # as older versions wrote it; a wrong one would be damage
    run.status_path.write_text(json.dumps(content))


def mark_of(process: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**process, **changes}


def age(run: RunDir, seconds: float) -> None:
    then = time.time() - seconds
    for path in (run.status_path, run.steps_path, run.epochs_path):
        if path.is_file():
            os.utime(path, (then, then))


def test_the_layout_is_schema_1(run: RunDir) -> None:
    cell = Cell(prompt="a", width=512, height=768, seed=7, epoch=3)
    inside = {
        path.relative_to(run.path).as_posix()
        for path in (
            run.config_path,
            run.provenance_path,
            run.status_path,
            run.steps_path,
            run.epochs_path,
            run.validation_path,
            run.lora_dir,
            run.state_dir,
            run.sheets_dir,
            run.tensorboard_dir,
            run.images_dir(0),
            run.image_path(cell),
            run.lora_path(1),
            run.lora_path(None),
        )
    }
    assert inside == {
        "config.yaml",
        "provenance.json",
        "status.json",
        "steps.jsonl",
        "epochs.jsonl",
        "validation.jsonl",
        "lora",
        "state",
        "sheets",
        "tensorboard",
        "images/epoch-0000",
        "images/epoch-0003/a-512x768-s7.png",
        "lora/adamw-dim16-0123abcd-000001.safetensors",
        "lora/adamw-dim16-0123abcd.safetensors",
    }


def test_a_written_file_replaces_the_old_one_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.txt"
    files.write_atomic(path, "one")
    files.write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.txt"
    files.write_atomic(path, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_data_is_on_disk_before_the_name_points_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noting_fsync(handle: int) -> None:
        order.append("fsync")
        fsync(handle)

    def noting_replace(self: Path, target: Path) -> Path:
        order.append("replace")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(Path, "replace", noting_replace)
    files.write_atomic(tmp_path / "file", "text")
    assert order == ["fsync", "replace", "fsync"]


_KILLED_WRITER = """
import itertools, sys
from pathlib import Path
from optbench.storage import files
folder = Path(sys.argv[1])
for number in itertools.count():
    files.write_json(folder / "whole.json", {"number": number, "text": "x" * 200_000})
    files.append_rows(folder / "rows.jsonl", [{"epoch": number, "text": "y" * 5_000}] * 4)
"""


def test_killed_at_any_moment_files_are_whole(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(rundir.__file__).parents[2])}
    for wait_seconds in (0.02, 0.05, 0.09):
        writer = subprocess.Popen(
            [sys.executable, "-c", _KILLED_WRITER, str(tmp_path)], env=environment
        )
        deadline = time.monotonic() + 30
        while not (tmp_path / "rows.jsonl").is_file() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(wait_seconds)
        writer.kill()
        writer.wait()
        assert len(files.read_json(tmp_path / "whole.json")["text"]) == 200_000
        assert files.read_rows(tmp_path / "rows.jsonl")
        files.clean_partial_files(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {"whole.json", "rows.jsonl"}
        (tmp_path / "rows.jsonl").unlink()


def test_rows_come_back_as_they_were(run: RunDir) -> None:
    rows: list[dict[str, Any]] = [
        {"step": 1, "lr/unet": 1e-4, "text": "a\u2028b\nc"},
        {"step": 2, "lr/unet": 0.1 + 0.2},
    ]
    files.append_rows(run.steps_path, rows[:1])
    files.append_rows(run.steps_path, rows[1:])
    assert files.read_rows(run.steps_path) == rows
    assert files.read_rows(run.epochs_path) == []


def test_appending_nothing_makes_no_file(run: RunDir) -> None:
    files.append_rows(run.steps_path, [])
    assert not run.path.exists()


def test_numbers_that_are_not_finite_become_null(run: RunDir) -> None:
    row = {"loss": float("nan"), "inner": {"list": [float("inf"), -float("inf"), 1.5]}}
    files.append_rows(run.steps_path, [row])
    files.write_json(run.provenance_path, row)
    for text in (run.steps_path.read_text(), run.provenance_path.read_text()):
        read = json.loads(text, parse_constant=pytest.fail)
        read.popitem()  # its checksum
        assert read == {"loss": None, "inner": {"list": [None, None, 1.5]}}


def test_rows_are_appended_in_one_write(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[bytes] = []
    opened = files.open_to_append

    class Noting:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Noting:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, data: bytes) -> None:
            texts.append(data)
            self.file.write(data)

        def flush(self) -> None:
            self.file.flush()

        def fileno(self) -> int:
            return int(self.file.fileno())

    monkeypatch.setattr(files, "open_to_append", lambda path: Noting(opened(path)))
    files.append_rows(run.steps_path, ({"epoch": 1, "step": step} for step in range(50)))
    assert len(texts) == 1
    assert texts[0].count(b"\n") == 50


def test_half_a_last_line_is_not_read_and_not_continued(run: RunDir) -> None:
    files.append_rows(run.steps_path, [{"epoch": 1}, {"epoch": 2}])
    with run.steps_path.open("ab") as file:
        file.write(b'{"epoch": 3, "lo')
    assert files.read_rows(run.steps_path) == [{"epoch": 1}, {"epoch": 2}]
    files.append_rows(run.steps_path, [{"epoch": 3}])
    assert files.read_rows(run.steps_path) == [{"epoch": 1}, {"epoch": 2}, {"epoch": 3}]


@pytest.mark.parametrize("line", [b"{nonsense", b"[1, 2]", b"\xff\xfe", b""])
def test_damage_inside_a_file_is_told_with_its_line(run: RunDir, line: bytes) -> None:
    run.path.mkdir(parents=True)
    run.steps_path.write_bytes(b'{"epoch": 1}\n' + line + b'\n{"epoch": 2}\n')
    with pytest.raises(DamagedFileError, match="line 2"):
        files.read_rows(run.steps_path)


def test_rows_after_an_epoch_are_dropped_with_the_torn_one(run: RunDir) -> None:
    files.append_rows(run.steps_path, [{"epoch": number // 2, "n": number} for number in range(8)])
    with run.steps_path.open("ab") as file:
        file.write(b'{"epoch": 1')
    assert files.truncate_rows(run.steps_path, max_epoch=1) == 4
    assert [row["n"] for row in files.read_rows(run.steps_path)] == [0, 1, 2, 3]
    assert run.steps_path.read_bytes().endswith(b"}\n")
    assert files.truncate_rows(run.epochs_path, max_epoch=0) == 0
    assert not run.epochs_path.exists()


def test_a_record_without_its_epoch_is_damage(run: RunDir) -> None:
    files.append_rows(run.steps_path, [{"epoch": 1}, {"step": 2}])
    with pytest.raises(DamagedFileError, match="epoch"):
        files.truncate_rows(run.steps_path, max_epoch=1)
    assert len(files.read_rows(run.steps_path)) == 2


@pytest.mark.parametrize("text", ["", "{", "[1]", "null"])
def test_json_that_is_no_object_is_damage(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file.json"
    path.write_text(text)
    with pytest.raises(DamagedFileError, match="a JSON object"):
        files.read_json(path)
    path.unlink()
    with pytest.raises(DamagedFileError):
        files.read_json(path)


def test_a_status_comes_back_with_its_facts(run: RunDir) -> None:
    rundir.write_status(run.path, "diverged", "loss is nan", step=12)
    record = rundir.read_status(run.path)
    assert (record.status, record.reason, record.facts) == ("diverged", "loss is nan", {"step": 12})
    assert record.updated.endswith("+00:00")
    assert json.loads(run.status_path.read_text())["schema"] == 1


def test_no_folder_and_no_status_are_pending(run: RunDir) -> None:
    assert rundir.read_status(run.path).status == "pending"
    run.path.mkdir(parents=True)
    assert rundir.read_status(run.path).status == "pending"


def test_an_unknown_status_is_not_written(run: RunDir) -> None:
    with pytest.raises(ValueError, match="finished"):
        rundir.write_status(run.path, "finished")  # type: ignore[arg-type]
    assert not run.path.exists()


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"schema": 1, "status": "finished"}',
        '{"schema": 1, "status": ["done"]}',
        '{"status": "done"}',
    ],
)
def test_a_damaged_status_is_interrupted_with_a_reason(run: RunDir, content: str) -> None:
    run.path.mkdir(parents=True)
    run.status_path.write_text(content)
    record = rundir.read_status(run.path)
    assert record.status == "interrupted"
    assert "status.json" in record.reason


def test_a_status_of_a_later_optbench_is_failed_with_a_sentence(run: RunDir) -> None:
    run.path.mkdir(parents=True)
    run.status_path.write_text('{"schema": 2, "status": "done", "new": {}}')
    record = rundir.read_status(run.path)
    assert record.status == "failed"
    assert "update optbench" in record.reason
    assert rundir.is_of_later_optbench(run.path)
    rundir.write_status(run.path, "done")
    assert not rundir.is_of_later_optbench(run.path)


def test_a_run_of_a_living_process_is_running_however_long_it_is_silent(run: RunDir) -> None:
    rundir.write_status(run.path, "running")
    age(run, 100 * locks.STALE_SECONDS)
    assert rundir.read_status(run.path).status == "running"


def test_a_run_of_a_killed_process_is_interrupted_at_once(run: RunDir) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from optbench.storage import rundir\n"
        "rundir.write_status(Path(sys.argv[1]), 'running', note=5)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(rundir.__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code, str(run.path)], env=environment, check=False)
    assert json.loads(run.status_path.read_text())["status"] == "running"
    record = rundir.read_status(run.path)
    assert record.status == "interrupted"
    assert record.reason
    assert record.facts == {"note": 5}


def test_a_killed_process_nobody_has_waited_for_is_dead(run: RunDir) -> None:
    rundir.write_status(run.path, "running")
    with subprocess.Popen([sys.executable, "-c", ""]) as zombie:
        stat = Path(f"/proc/{zombie.pid}/stat")
        deadline = time.monotonic() + 20
        while stat.read_text().rpartition(")")[2].split()[0] != "Z":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        started = int(stat.read_text().rpartition(")")[2].split()[19])
        mark = json.loads(run.status_path.read_text())["process"]
        rewrite_status(run, process=mark_of(mark, pid=zombie.pid, started=started))
        assert rundir.read_status(run.path).status == "interrupted"


def test_another_process_with_the_same_number_does_not_keep_a_run_alive(run: RunDir) -> None:
    rundir.write_status(run.path, "running")
    mark = json.loads(run.status_path.read_text())["process"]
    rewrite_status(run, process=mark_of(mark, started=mark["started"] - 1))
    assert rundir.read_status(run.path).status == "interrupted"


@pytest.mark.parametrize("process", [{}, {"pid": 1, "started": 5, "place": "elsewhere"}, None, 7])
def test_seen_from_elsewhere_records_decide(run: RunDir, process: Any) -> None:
    rundir.write_status(run.path, "running")
    rewrite_status(run, process=process)
    assert rundir.read_status(run.path).status == "running"
    age(run, locks.STALE_SECONDS + 60)
    assert rundir.read_status(run.path).status == "interrupted"
    files.append_rows(run.steps_path, [{"epoch": 1}])
    assert rundir.read_status(run.path).status == "running"


def test_only_running_names_a_process(run: RunDir) -> None:
    rundir.write_status(run.path, "done")
    assert "process" not in json.loads(run.status_path.read_text())


def test_the_status_does_not_name_the_machine(run: RunDir) -> None:
    rundir.write_status(run.path, "running")
    text = run.status_path.read_text()
    for secret in (os.uname().nodename, str(Path.home())):
        assert secret not in text


def test_partial_files_are_swept_and_nothing_else(run: RunDir) -> None:
    files.append_rows(run.steps_path, [{"epoch": 1}])
    (run.path / "images").mkdir()
    (run.path / "images" / "a.png.77.tmp").write_text("half")
    assert files.clean_partial_files(run.path) == 1
    assert [path for path in run.path.rglob("*") if path.is_file()] == [run.steps_path]
