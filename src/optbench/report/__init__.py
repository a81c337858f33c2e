"""Build a sweep's report: one folder of page, sheets and tables that opens offline."""

from __future__ import annotations

from pathlib import Path

__all__ = ["REPORT_NAME", "WAITING_PAGE", "build_report"]

REPORT_NAME = "index.html"  # in the folder `report` of a sweep
WAITING_PAGE = Path(__file__).parent / "static" / "waiting.html"  # until the first build is done


def build_report(sweep_dir: Path, *, is_live: bool = False) -> Path:
    """Return the path of a sweep's index.html, made anew from what lies in the sweep's folder.

    Partial and empty sweeps have a report too; only sheets that would change are drawn again.

    Args:
        sweep_dir: The sweep's folder.
        is_live: The sweep is training: sheets, which take the longest, are left for the end, the
            page looks for the next build, and a build that another process is at is not waited for.

    Raises:
        DatasetError: If there is no such folder.
    """
    # Imported here, because pandas takes half a second that a finished sweep need not wait for.
    from optbench.report.page import write_page

    return write_page(Path(sweep_dir), is_live=is_live)
