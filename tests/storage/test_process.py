"""A process is told from every other by its record, also by one that an older optbench wrote."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from optbench.storage.process import is_alive, is_this_process, process_record


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="older records were Linux' own")
def test_the_start_is_counted_as_older_records_count_it() -> None:
    stat = Path(f"/proc/{os.getpid()}/stat").read_text()
    assert process_record()["started"] == int(stat.rpartition(")")[2].split()[19])


def test_this_process_lives_and_is_this_one() -> None:
    record = process_record()
    assert is_alive(record) is True
    assert is_this_process(record)
    assert not is_this_process({**record, "pid": os.getppid()})


def test_a_pid_that_is_gone_is_dead() -> None:
    gone = process_record(2**22 - 3)
    assert gone["started"] is None
    assert is_alive(gone) is False
