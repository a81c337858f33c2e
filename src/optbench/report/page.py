"""Write report/index.html: a sweep as one page that opens by double click, offline."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from optbench import analysis
from optbench.analysis import find_runs, no_runs
from optbench.analysis.evidence import SweepEvidence, read_sweep
from optbench.analysis.raced import is_stopped_by_race
from optbench.report import REPORT_NAME, exports, provenance_section, sheets, tables
from optbench.report.built import Build, building
from optbench.report.charts.chart import swatch, write_charts
from optbench.report.charts.runs import run_facts
from optbench.report.charts.styles import run_styles
from optbench.report.charts.training import training_charts
from optbench.report.findings import make_findings
from optbench.report.first_screen import NUM_SHOWN, first_screen
from optbench.report.inline import content_policy, static_text
from optbench.report.links import address, refuse_links
from optbench.report.race_section import race_section
from optbench.report.resize_section import resize_section
from optbench.report.sections import sections
from optbench.report.summary import write_summary
from optbench.report.viewer import write_data
from optbench.report.wording import number_text, reasons_once, seconds_text
from optbench.storage.files import write_atomic
from optbench.storage.resources import command_line

_TEMPLATES = Path(__file__).parent / "templates"
_STYLES = ("page.css", "first_screen.css", "race.css", "charts.css", "viewer.css", "live.css")
_SCRIPTS = ("page.js", "first_screen.js", "live.js")
# Charts that the viewer shows of the run whose image is selected.
_BESIDE_IMAGES = (
    "loss",
    "gain-held-out",
    "gain-ood",
    "forgetting",
    "effective-lr-unet",
)
_VIEWER_SCRIPTS = (
    "viewer_model.js",
    "viewer_state.js",
    "viewer_grid.js",
    "viewer_details.js",
    "viewer_large.js",
    "viewer_compare.js",
    "viewer_scores.js",
    "viewer_score_form.js",
    "viewer_preference.js",
    "viewer_vote.js",
    "viewer_controls.js",
    "viewer_png.js",
    "viewer.js",  # starts it all, so it comes last
)


def write_page(sweep_dir: Path, *, is_live: bool = False) -> Path:
    """Return the path of the page, after writing it, its sheets and its tables.

    Args:
        sweep_dir: The sweep's folder.
        is_live: Leave out the sheets, because the sweep is training; and all of it where another
            process is at it.

    Raises:
        DatasetError: If there is no such folder, or one to write into is a symbolic link.
    """
    if not sweep_dir.is_dir():
        raise no_runs(sweep_dir)
    report_dir = sweep_dir / "report"
    run_folders = [run / name for run in find_runs(sweep_dir) for name in ("sheets", "thumbs")]
    refuse_links([report_dir, *run_folders])
    with building(report_dir, waits=not is_live) as is_ours:
        if is_ours:
            _write(sweep_dir, report_dir, Build(is_live=is_live))
    return report_dir / REPORT_NAME


def _write(sweep_dir: Path, report_dir: Path, build: Build) -> None:
    sweep = read_sweep(sweep_dir)
    styles = run_styles(sweep)
    findings = make_findings(sweep, styles)
    files = exports.write_tables(sweep.frames, report_dir, findings.tables)
    trainings = sweep.only(analysis.TRAINING)
    is_compared = trainings.runs or not sweep.runs
    # Beside trainings resized LoRAs are further rows; alone they have sheets of their own.
    rows = sweep.only(analysis.TRAINING, analysis.RESIZE) if is_compared else trainings
    shared_settings, own_settings = provenance_section.split_settings(sweep.runs)
    shared_provenance = provenance_section.shared_facts(sweep.runs)
    if not build.is_live:
        sheets.draw_run_sheets(sweep.runs)
    resized = resize_section(sweep, styles, report_dir)
    charts = tuple(training_charts(trainings, findings.legend))
    write_charts(
        [
            *charts,
            *findings.charts,
            *(findings.metrics.charts if findings.metrics else ()),
            *((*resized.charts, *resized.maps) if resized else ()),
        ],
        findings.legend,
        run_facts(sweep),
        report_dir,
    )
    prompt_sheets = [] if build.is_live else sheets.epoch_sheets(rows, report_dir)
    if not build.is_live:
        sheets.remove_others(report_dir, [*prompt_sheets, *(resized.sheets if resized else ())])
    title = _title(sweep)
    num_pictures = write_data(
        sweep,
        styles,
        report_dir,
        title=title,
        settings=findings.standings.settings,
        curves=[chart for chart in charts if chart.name in _BESIDE_IMAGES],
    )
    context: dict[str, Any] = {
        "build": build,
        "title": title,
        "name": sweep_dir.resolve().name,
        "sweep": sweep,
        "styles": styles,
        "runs_by_name": {run.name: run for run in sweep.runs},
        "counts": Counter(run.status for run in sweep.runs).most_common(),
        "undone": [
            run
            for run in sweep.runs
            if run.row["status"] != "done" and not is_stopped_by_race(run.row)
        ],
        # As they are read and not as they are typed.
        "factors": {
            name: [analysis.short(name, value) for value in values]
            for name, values in sweep.factors.items()
        },
        "train_command": command_line("", "-m", "optimizer=adamw,lion"),
        "trainings": trainings,
        "race": race_section(sweep, styles),
        "resized": resized,
        "findings": findings,
        "metrics": findings.metrics,
        "broken_images": [
            (broken.label, reasons_once(broken.reasons), address(broken.image, report_dir))
            for broken in findings.broken
            if broken.image is not None
        ],
        "main_settings": provenance_section.main_settings(sweep),
        "ranking": tables.ranking(trainings, findings.standings.settings),
        "epoch_times": tables.epoch_times(trainings, findings.standings.settings),
        "num_pictures": num_pictures,
        "prompt_sheets": prompt_sheets,
        "sheets_left_out": sheets.left_out(rows),
        "charts": charts,
        "changes": tables.change_rows(trainings, findings.tables["effects"]),
        "has_equal_draws": analysis.has_equal_draws(trainings.rows),
        "run_sheets": {
            run.name: [
                (name, address(path, report_dir))
                for name in dict.fromkeys(prompt.name for prompt in run.prompts)
                if (path := run.run.sheets_dir / f"{name}.png").is_file()
            ]
            for run in sweep.runs
        },
        "lora_files": {
            run.name: [
                (path.name, address(path, report_dir))
                for path in sorted(run.run.lora_dir.glob("*.safetensors"))
            ]
            for run in sweep.runs
        },
        "own_settings": own_settings,
        "shared_settings": shared_settings,
        "own_provenance": {
            run.name: provenance_section.own_facts(run, shared_provenance) for run in sweep.runs
        },
        "shared_provenance": shared_provenance,
        "recipes": provenance_section.recipes(sweep),
        "files": files,
    }
    # What decides whether a section is there, beside what it shows.
    context |= {
        "problems": sweep.frames.problems,
        "has_settings": bool(findings.standings.finished),
        "people": findings.ratings,
        "has_trainings": bool(trainings.runs),
        "has_runs": bool(sweep.runs),
        "reasons": findings.answer,
    }
    context["sections"] = sections(context)
    # Last, because it shows the small copies that the viewer's data needed, too.
    context["first"] = (
        None
        if findings.answer is None
        else first_screen(
            trainings,
            findings.answer,
            findings.standings,
            styles,
            report_dir,
            preferred=findings.preferred,
        )
    )
    page = _environment().get_template("index.html.j2").render(context)
    write_summary(report_dir, findings)
    write_atomic(report_dir / REPORT_NAME, page)
    build.write(report_dir)


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["num_shown"] = NUM_SHOWN
    environment.filters.update(number=number_text, seconds=seconds_text)
    script, chart_script = static_text(*_SCRIPTS), static_text("charts.js")
    viewer_script = static_text(*_VIEWER_SCRIPTS)
    # Ours, and meant as CSS and script: not to be escaped.
    environment.globals.update(
        policy=Markup(content_policy((script, chart_script, viewer_script))),
        style=Markup(static_text(*_STYLES)),
        script=Markup(script),
        chart_script=Markup(chart_script),
        viewer_script=Markup(viewer_script),
        measure_titles=analysis.MEASURES,
        swatch=swatch,
    )
    return environment


def _title(sweep: SweepEvidence) -> str:
    """Return the question the sweep asks, in plain words."""
    if not sweep.runs:
        return "No runs yet"
    # The seed is no question, only a way to be surer of the others; nor is a rate that is tuned.
    beside = {"seed"} if sweep.race is None else {"seed", sweep.race.rate_key}
    names = [name for name in sweep.factors if name not in beside] or list(sweep.factors)
    if not names:
        return sweep.runs[0].label if len(sweep.runs) == 1 else "Runs with equal settings"
    listing = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    is_of_files = all(run.kind != analysis.TRAINING for run in sweep.runs)
    return f"{'Resized LoRAs: which' if is_of_files else 'Which'} {listing}?"
