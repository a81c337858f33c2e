"""Build a sweep's report: one folder of page, sheets and tables that opens offline."""

from __future__ import annotations

from pathlib import Path

__all__ = ["build_report"]


def build_report(sweep_dir: Path) -> Path:
    """Return the path of a sweep's index.html, made anew from what lies in the sweep's folder.

    Partial and empty sweeps have a report too; only sheets that would change are drawn again.

    Raises:
        DatasetError: If there is no such folder.
    """
    # Imported here, because pandas takes half a second that a finished sweep need not wait for.
    from optbench.report.page import write_page

    return write_page(Path(sweep_dir))
