"""Build one sweep's report while it trains: `python -m optbench.report.rebuild SWEEP_DIR`.

A process of its own, of low priority, so that its memory, its time and its errors are not the
training's. Its last line on the standard output is JSON: `cpu_seconds`, and `error` in words.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from optbench.errors import OptbenchError

_NICENESS = 10  # a tenth of a core where a training wants them all


def main(sweep_dir: Path) -> int:
    """Print what a build cost and what went wrong; return 0 if it was built."""
    os.nice(_NICENESS)
    # By exit and not by death: partial files are removed on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    from optbench.report import build_report

    error = ""
    try:
        build_report(sweep_dir, is_live=True)
    except OptbenchError as problem:
        error = str(problem)
    except Exception as problem:  # noqa: BLE001 - said once by the training, whatever it is
        error = f"{type(problem).__name__}: {problem}"
    print(json.dumps({"cpu_seconds": time.process_time(), "error": error}))  # noqa: T201 - a protocol
    return 1 if error else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
