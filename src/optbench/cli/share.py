"""`optbench share RUNS_DIR`: a sweep's report as one HTML file and one PNG, to send to people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from optbench.analysis import no_runs, sweep_dirs
from optbench.cli.command import DONE, folders_only, refuse
from optbench.errors import OptbenchError, Problem
from optbench.storage.files import write_atomic
from optbench.storage.resources import command_line
from optbench.terminal import link, say, tell, working

_TRAINING_IMAGES = "--training-images"
_VOTE = "--vote"
_FOLDER = "share"
_VIEW = "rows=run,columns=shot"


def main(arguments: Sequence[str]) -> int:
    """Print the paths of both files; return 0, or 2 with every problem on the standard error.

    With `--vote` it is one file in which others vote.
    """
    words = [word for word in arguments if word not in (_TRAINING_IMAGES, _VOTE)]
    try:
        folders = folders_only(words, default="runs")
        sweeps = [sweep for folder in folders for sweep in sweep_dirs(folder)]
        if not sweeps:
            raise no_runs(folders[0])
        if len(sweeps) > 1:
            names = ", ".join(str(sweep) for sweep in sweeps)
            fix = f"write {command_line('share', str(sweeps[0]))}"
            raise OptbenchError(Problem("the command line", names, "one sweep", fix))
        # Imported here: pandas takes half a second that a refusal does not need.
        from optbench.report.grid_sheet import write_grid
        from optbench.report.share import share_report

        sweep_dir = sweeps[0]
        name = sweep_dir.resolve().name
        if _VOTE in arguments:
            return _share_vote(sweep_dir, sweep_dir / _FOLDER / f"{name}-vote.html")
        with working("putting the report and its images into one file"):
            shared = share_report(
                sweep_dir,
                sweep_dir / _FOLDER / f"{name}.html",
                with_training_images=_TRAINING_IMAGES in arguments,
            )
            sheet = write_grid(sweep_dir, _VIEW, sweep_dir / _FOLDER / f"{name}.png")
    except OptbenchError as error:
        return refuse(error.problems)
    size = shared.path.stat().st_size / 2**20
    tell(
        f"One file of {size:.1f} MB with {shared.num_images} images of at most {shared.side_px} "
        "pixels. No weights and no places on this machine are in it."
    )
    if shared.left_out:
        tell(f"Left out, for its size: {shared.left_out}.")
    if _TRAINING_IMAGES not in arguments:
        tell(f"Training images are not in it; {_TRAINING_IMAGES} puts a few in, small.")
    say(sheet)
    say(link(shared.path))
    return DONE


def _share_vote(sweep_dir: Path, target: Path) -> int:
    from optbench.report.vote_page import vote_page

    with working("putting images to vote on into one file"):
        write_atomic(target, vote_page(sweep_dir))
    tell(
        f"One file of {target.stat().st_size / 2**20:.1f} MB to send to others. It sends nothing: "
        "each of them saves a JSON file at the end and gives it to you."
    )
    report = command_line("report", str(sweep_dir))
    tell(f"Put those files into {sweep_dir / 'scores'}; {report} then counts the votes.")
    say(link(target))
    return DONE
