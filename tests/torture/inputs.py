"""The table of bad inputs and the fuzzing of every reader, with many more examples than usual."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from tests.torture.commands import Figures

_TABLE = "tests/test_bad_inputs.py"
_FUZZ = "tests/test_fuzzed_readers.py"


def input_campaign(*, num_examples: int) -> list[Figures]:
    """Run both through pytest and count."""
    return [
        _counted("bad inputs", _TABLE, "each refused with its expected sentence", num_examples),
        _counted(
            "fuzzed readers", _FUZZ, f"hypothesis, {num_examples} examples each", num_examples
        ),
    ]


def _counted(name: str, file: str, what: str, num_examples: int) -> Figures:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--timeout=3600",
            "--hypothesis-profile=many",
            file,
        ],
        env={**os.environ, "OPTBENCH_EXAMPLES": str(num_examples)},
        capture_output=True,
        text=True,
        check=False,
    )
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-500:]
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed)", last)}
    failed = re.findall(r"^FAILED (.*)$", done.stdout, flags=re.MULTILINE)
    if done.returncode and not failed:
        failed = [last]
    return Figures(name=name, num_tried=sum(counts.values()), what=what, losses=tuple(failed))
