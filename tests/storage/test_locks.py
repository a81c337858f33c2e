"""One worker has a run's lock: real processes race for it, die with it, sleep through its loss."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from optbench.errors import LockLostError
from optbench.launch import guard
from optbench.records import Status
from optbench.storage import checksums, files, locks, process, rundir
from optbench.storage.partial import partial_path

SOURCE = Path(locks.__file__).parents[2]
RACERS = 6

# Waits for the starting gun, so that all ask within the same microseconds.
RACE = """
import sys, time
from pathlib import Path
from optbench.storage import locks
run, gun, held = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
print("ready", flush=True)
while not gun.exists():
    time.sleep(0.0005)
lock = locks.acquire(run)
print("-" if lock is None else lock.number, flush=True)
time.sleep(held)
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "sweep" / "run-0a1b2c3d"


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )


def race(run: Path, gun: Path) -> list[str]:
    """Return what every racer printed; all live until all have asked."""
    racers = [start(RACE, run, gun, 60) for _ in range(RACERS)]
    try:
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"
        gun.touch()
        return [racer.stdout.readline().strip() for racer in racers if racer.stdout is not None]
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()


def test_of_many_processes_one_gets_a_run_and_of_many_one_takes_a_dead_one_over(
    run: Path, tmp_path: Path
) -> None:
    for turn in range(1, 4):  # the winners of the turns before were killed
        results = race(run, tmp_path / f"gun-{turn}")
        assert sorted(results) == ["-"] * (RACERS - 1) + [str(turn)]
    assert sorted(path.name for path in (run / "claims").glob("*.json")) == [
        "000001.json",
        "000002.json",
        "000003.json",
    ]


def test_a_held_run_is_refused_and_a_released_one_is_not(run: Path) -> None:
    with locks.hold_lock(run) as lock:
        assert lock is not None
        assert lock.number == 1
        assert locks.acquire(run) is None
        holder = locks.lock_holder(run)
        assert holder is not None
        assert str(holder) == f"process {os.getpid()} on this machine"
    assert locks.lock_holder(run) is None
    with locks.hold_lock(run) as again:
        assert again is not None
        assert again.number == 2


def test_a_lock_that_a_living_process_has_released_is_free(run: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from optbench.storage import locks\n"
        "with locks.hold_lock(Path(sys.argv[1])): pass\n"
        "print('released', flush=True); sys.stdin.readline()\n"
    )
    other = start(code, run)
    assert other.stdout is not None
    assert other.stdout.readline() == "released\n"
    try:
        assert locks.acquire(run) is not None
    finally:
        other.communicate("end\n", timeout=60)


def test_only_lock_files_are_left_behind(run: Path) -> None:
    with locks.hold_lock(run):
        locks.acquire(run)
    assert [path.name for path in (run / "claims").iterdir()] == ["000001.json"]


def elsewhere(content: dict[str, Any]) -> None:
    content["process"] = {"pid": 1, "started": 5, "place": "x", "machine": "y", "boot": "z"}


def rebooted(content: dict[str, Any]) -> None:
    content["process"] |= {"place": "x", "boot": "z"}


def replaced(content: dict[str, Any]) -> None:
    content["process"]["started"] -= 1


def locked_by(run: Path, change: Callable[[dict[str, Any]], None], *, age: float = 0) -> None:
    """Leave the lock of another worker behind."""
    lock = locks.acquire(run)
    assert lock is not None
    content = checksums.parse_json(lock.path.read_text())
    change(content)
    lock.path.write_text(checksums.json_text(content))
    when = time.time() - age
    os.utime(lock.path, (when, when))


def test_elsewhere_silence_decides(run: Path) -> None:
    locked_by(run, elsewhere, age=locks.STALE_SECONDS - 60)
    assert locks.acquire(run) is None
    holder = locks.lock_holder(run)
    assert holder is not None
    assert "on another machine (last heartbeat 5" in str(holder)
    locks._lock_path(run, 1).touch()
    assert locks.acquire(run) is None
    when = time.time() - locks.STALE_SECONDS - 1
    os.utime(locks._lock_path(run, 1), (when, when))
    assert locks.lock_holder(run) is None
    assert locks.acquire(run) is not None


@pytest.mark.parametrize("change", [rebooted, replaced])
def test_here_the_process_and_the_boot_decide(
    run: Path, change: Callable[[dict[str, Any]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_machine", lambda: "this one")
    locked_by(run, change)
    assert locks.acquire(run) is not None


def test_without_a_name_for_the_machine_a_reboot_is_not_guessed(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_machine", lambda: "")
    locked_by(run, rebooted)
    assert locks.acquire(run) is None


def test_the_clock_of_the_share_is_what_silence_is_measured_with(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked_by(run, elsewhere)
    late = time.time() + 10 * locks.STALE_SECONDS
    monkeypatch.setattr(time, "time", lambda: late)  # this machine's clock is wrong
    assert locks.acquire(run) is None


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_lock_that_is_being_written_is_respected(run: Path, text: str) -> None:
    locked_by(run, elsewhere)
    locks._lock_path(run, 1).write_text(text)
    assert locks.acquire(run) is None
    when = time.time() - locks.STALE_SECONDS - 1
    os.utime(locks._lock_path(run, 1), (when, when))
    assert locks.acquire(run) is not None


@pytest.mark.parametrize("state", ["dead process", "dead boot"])
@pytest.mark.parametrize("text", ["", "{", '{"token": "ab', "\x00" * 40])
def test_an_unreadable_lock_of_a_dead_worker_is_dead_at_once(
    run: Path, text: str, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut may empty the lock; status.json says whose it was."""
    monkeypatch.setattr(process, "_machine", lambda: "this one")
    lock = locks.acquire(run)
    assert lock is not None
    record = process.process_record()
    record |= {"started": 1} if state == "dead process" else {"place": "x", "boot": "before"}
    with monkeypatch.context() as patch:
        patch.setattr(rundir, "process_record", lambda: record)
        rundir.write_status(run, "running")
    lock.path.write_text(text)  # and just now, as a touch would
    assert rundir.read_status(run).status == "interrupted"
    assert locks.acquire(run) is not None


def test_an_unreadable_lock_of_a_living_worker_is_respected(run: Path) -> None:
    lock = locks.acquire(run)
    assert lock is not None
    rundir.write_status(run, "running")  # by this process, which lives
    lock.path.write_text("")
    assert locks.acquire(run) is None
    assert rundir.read_status(run).status == "running"


def test_a_lock_with_a_wrong_bit_is_not_believed(run: Path) -> None:
    """One digit of the machine's hash, and the worker would be another machine's for 10 minutes."""
    lock = locks.acquire(run)
    assert lock is not None
    content = lock.path.read_text()
    place = content.index('"machine": "') + len('"machine": "')
    lock.path.write_text(
        content[:place] + ("1" if content[place] == "0" else "0") + content[place + 1 :]
    )
    assert locks._read(lock.path) == {}


def test_locks_are_on_the_disk_before_they_count(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, link, replace = os.fsync, os.link, Path.replace

    def named(handle: int) -> str:
        return os.path.basename(os.readlink(f"/proc/self/fd/{handle}"))  # noqa: PTH115, PTH119

    monkeypatch.setattr(os, "fsync", lambda h: (done.append(f"fsync {named(h)[-4:]}"), fsync(h))[1])
    monkeypatch.setattr(os, "link", lambda a, b: (done.append("link"), link(a, b))[1])
    monkeypatch.setattr(Path, "replace", lambda a, b: (done.append("replace"), replace(a, b))[1])
    lock = locks.acquire(run)
    assert lock is not None
    assert done[-3:] == ["fsync .new", "link", "fsync aims"]  # the folder is called claims
    done.clear()
    lock.release()
    assert done == ["fsync .new", "replace", "fsync aims"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOSYS])
def test_a_file_system_without_links_does_too(
    run: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*names: object) -> None:
        raise OSError(number, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    with locks.hold_lock(run) as lock:
        assert lock is not None
        assert json.loads(lock.path.read_text())["token"] == lock.token
        assert locks.acquire(run) is None
        other = checksums.json_text({"token": "another"})
        assert not locks._create(lock.path, lock.path, other)


def test_a_share_that_repeats_a_request_does_not_cost_the_lock(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def link_twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)  # its first answer was lost on the way

    monkeypatch.setattr(os, "link", link_twice)
    assert locks.acquire(run) is not None


def test_a_release_needs_no_room_on_the_disk(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*ignored: object, **also: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    lock = locks.acquire(run)
    assert lock is not None
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        lock.release()
    assert locks.lock_holder(run) is None
    assert locks.acquire(run) is not None


def test_a_sign_of_life_is_given_while_it_is_held(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_HEARTBEAT_SECONDS", 0.01)
    beside = run / "status.json"
    with locks.hold_lock(run, heartbeat_file=beside) as lock:
        assert lock is not None
        beside.touch()
        for path in (lock.path, beside):
            os.utime(path, (5, 5))
        deadline = time.monotonic() + 20
        while lock.path.stat().st_mtime == 5 or beside.stat().st_mtime == 5:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    os.utime(beside, (5, 5))
    time.sleep(0.05)
    assert beside.stat().st_mtime == 5


def test_who_lost_a_run_writes_nothing_more(run: Path, tmp_path: Path) -> None:
    from optbench.storage.files import write_pieces

    with locks.hold_lock(run) as lock:
        assert lock is not None
        rundir.write_status(run, "running")
        locks._lock_path(run, 2).write_text("{}")
        with pytest.raises(LockLostError, match="another worker has taken this run over"):
            rundir.write_status(run, "done")
        with pytest.raises(LockLostError):
            files.append_rows(run / "steps.jsonl", [{"epoch": 1}])
        with pytest.raises(LockLostError):
            write_pieces(run / "lora.safetensors", [b"header"])
        files.write_atomic(tmp_path / "sweep" / "run-0a1b2c3d-longer" / "file", b"not its folder")
    assert json.loads((run / "status.json").read_text())["status"] == "running"
    assert {path.name for path in run.iterdir() if not path.name.endswith(".partial")} == {
        "claims",
        "status.json",
    }


SLEEPER = """
import sys, time
from pathlib import Path
from optbench.launch import guard as launch; from optbench.storage import files, rundir
run = Path(sys.argv[1])
def work():
    rundir.write_status(run, "running")
    print("begun", flush=True)
    sys.stdin.readline()
    files.append_rows(run / "steps.jsonl", [{"epoch": 1, "by": "sleeper"}])
    rundir.write_status(run, "done", "by the sleeper")
    return "done"
print(launch.guard(run, work), flush=True)
"""


def test_a_worker_that_slept_until_it_was_replaced_stops_before_it_writes(run: Path) -> None:
    with start(SLEEPER, run) as sleeper:
        assert sleeper.stdout is not None
        assert sleeper.stdout.readline() == "begun\n"
        sleeper.send_signal(signal.SIGSTOP)
        path = locks._lock_path(run, 1)
        content = checksums.parse_json(path.read_text())
        elsewhere(content)  # as another machine sees it
        path.write_text(checksums.json_text(content))
        when = time.time() - locks.STALE_SECONDS - 1
        os.utime(path, (when, when))

        def work() -> Status:
            rundir.write_status(run, "done", "by the other")
            return "done"

        assert guard.guard(run, work) == "done"
        sleeper.send_signal(signal.SIGCONT)
        out, _ = sleeper.communicate("go on\n", timeout=60)
    assert out == "running\n"
    assert rundir.read_status(run).reason == "by the other"
    assert not (run / "steps.jsonl").exists()


def test_a_run_whose_lock_was_released_without_a_status_is_interrupted(run: Path) -> None:
    with locks.hold_lock(run):
        rundir.write_status(run, "running")
        assert rundir.read_status(run).status == "running"
    assert rundir.read_status(run).status == "interrupted"


def test_lock_files_name_no_machine(run: Path) -> None:
    with locks.hold_lock(run) as lock:
        assert lock is not None
        texts: Sequence[str] = [lock.path.read_text()]
    for secret in (os.uname().nodename, str(Path.home())):
        assert all(secret not in text for text in texts)


def test_the_next_worker_removes_what_a_dead_one_could_not(run: Path) -> None:
    """A disk that fails from one moment on refuses to remove a lock's candidate, too."""
    first = locks.acquire(run)
    assert first is not None
    living = partial_path(first.path, ".new")
    of_dead = living.with_name(living.name.replace(f".{os.getpid()}-", ".4194305-"))
    for path in (living, of_dead):
        path.touch()
    first.release()
    assert locks.acquire(run) is not None
    assert living.is_file()
    assert not of_dead.is_file()
