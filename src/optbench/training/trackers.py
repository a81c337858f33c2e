"""Log runs to W&B, MLflow and trackio through accelerate's trackers; none of them can stop a run.

Every epoch is logged once: a small ledger in the run's folder holds the last epoch that each
tracker has, and is written before the rows are sent. So a killed run never doubles a row there; at
worst the rows of the epoch it was killed in are missing.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optbench.errors import DamagedFileError, Problem, call_third_party
from optbench.schema import TrackerOptions
from optbench.storage import files, hashing
from optbench.storage.files import Row
from optbench.storage.nested import flatten
from optbench.storage.rundir import RunDir

PACKAGES: Mapping[str, str] = {"wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}
_PROJECT = "optbench"
_LEDGER = "trackers.json"


def check_tracker(options: TrackerOptions) -> list[Problem]:
    """Return everything impossible or without effect in the group, missing packages included."""
    problems = []
    for name in options.log_with:
        if name not in PACKAGES:
            problems.append(
                Problem(
                    "tracker.log_with",
                    repr(name),
                    f"some of {', '.join(PACKAGES)}; TensorBoard's files are always there",
                    "write 'tracker.log_with=[mlflow]', or [] for none",
                )
            )
        elif importlib.util.find_spec(PACKAGES[name]) is None:
            problems.append(
                Problem(
                    "tracker.log_with",
                    f"{name}, whose package is not installed",
                    "a package that is there",
                    f"pip install {PACKAGES[name]}, or leave {name} out",
                )
            )
    if len(set(options.log_with)) < len(options.log_with):
        problems.append(_ineffective("tracker.log_with", "one tracker twice", "each once"))
    for name, arguments in options.args.items():
        where = f"tracker.args.{name}"
        if name not in options.log_with:
            problems.append(_ineffective(where, f"arguments of {name}", "it in tracker.log_with"))
        elif not isinstance(arguments, Mapping):
            problems.append(_ineffective(where, repr(arguments), "names and values"))
    if not options.log_with:
        problems += [
            _ineffective(f"tracker.{key}", repr(value), "a tracker in tracker.log_with")
            for key in ("log_tracker_name", "run_name")
            if (value := getattr(options, key)) is not None
        ]
    return problems


def _ineffective(where: str, found: str, expected: str) -> Problem:
    return Problem(where, found, expected, f"correct or leave out {where}")


@dataclass(slots=True)
class Trackers:
    """The trackers of one run, begun by `begin`; an error of one is shown and ends its logging."""

    options: TrackerOptions
    folder: Path  # the run's state folder, where the ledger lies
    run_name: str
    say: Callable[[str], None]
    _open: dict[str, Any] = field(default_factory=dict)
    _ledger: dict[str, dict[str, Any]] = field(default_factory=dict)

    def begin(self, settings: Mapping[str, object]) -> None:
        """Open every tracker, or resume the run it already has, and send it the settings."""
        if not self.options.log_with:
            return
        self._ledger = self._read_ledger()
        for name in self.options.log_with:
            entry = self._ledger.setdefault(name, {"epoch": 0, "id": ""})
            if self._try(name, lambda name=name: self._start(name, settings)):  # type: ignore[misc]
                self._ledger[name] = entry

    def log(self, run: RunDir) -> None:
        """Send each tracker the run's records of the epochs that it does not have yet."""
        if self._open:
            steps = files.read_rows(run.steps_path)
            for row in files.read_rows(run.epochs_path):
                step_rows = [step for step in steps if step["epoch"] == row["epoch"]]
                self._epoch(row["epoch"], [*step_rows, row])

    def _epoch(self, epoch: int, rows: Sequence[Row]) -> None:
        for name in list(self._open):
            entry = self._ledger[name]
            if entry["epoch"] >= epoch:
                continue
            self._ledger[name] = {**entry, "epoch": epoch}
            self._write_ledger()
            self._try(name, lambda name=name: self._send(name, rows))  # type: ignore[misc]

    def finish(self) -> None:
        """Close every tracker."""
        for name in list(self._open):
            self._try(name, lambda name=name: self._open[name].finish())  # type: ignore[misc]
        self._open.clear()

    def _start(self, name: str, settings: Mapping[str, object]) -> None:
        from accelerate import tracking

        entry = self._ledger[name]
        arguments: dict[str, Any] = {**self.options.args.get(name, {})}
        project = self.options.log_tracker_name or _PROJECT
        shown = self.options.run_name or self.run_name
        is_known = bool(entry["id"])
        if name == "mlflow":
            tracker: Any = tracking.MLflowTracker(
                project, run_name=shown, run_id=entry["id"] or None, **arguments
            )
        else:
            arguments = {"name": shown, **arguments}
            if name == "wandb":
                run_id = entry["id"] or hashing.fingerprint({"folder": str(self.folder.resolve())})
                arguments = {"id": run_id, "resume": "allow", **arguments}
            else:
                arguments = {"resume": "allow" if is_known else "never", **arguments}
            kind = tracking.WandBTracker if name == "wandb" else tracking.TrackioTracker
            tracker = kind(project, **arguments)
        tracker.start()
        self._open[name] = tracker
        # What the tracker's package finds the same run by.
        handle = tracker.tracker
        entry["id"] = str(
            handle.info.run_id
            if name == "mlflow"
            else getattr(handle, "id", None) or getattr(handle, "name", "") or ""
        )
        self._write_ledger()
        if not is_known:
            tracker.store_init_configuration(dict(settings))

    def _send(self, name: str, rows: Sequence[Row]) -> None:
        """Send one tracker rows by step; an epoch's own numbers go with its last step's."""
        by_step: dict[int, dict[str, float]] = {}
        for row in rows:
            by_step.setdefault(int(row["step"]), {}).update(
                (key, value)
                for key, value in row.items()
                if key != "step" and isinstance(value, (int, float)) and type(value) is not bool
            )
        for step, values in by_step.items():
            self._open[name].log(values, step=step)

    def _try(self, name: str, work: Callable[[], object]) -> bool:
        why = call_third_party(work)
        if why:
            self._open.pop(name, None)
            self.say(f"{name} logging is disabled for the rest of this run: {why}")
        return not why

    def _read_ledger(self) -> dict[str, dict[str, Any]]:
        path = self.folder / _LEDGER
        if not path.is_file():
            return {}
        try:
            content = files.read_json(path)
            return {
                str(name): {"epoch": int(entry["epoch"]), "id": str(entry["id"])}
                for name, entry in content.items()
            }
        except (DamagedFileError, KeyError, TypeError, ValueError) as error:
            self.say(f"trackers may get rows twice: {error}")
            return {}

    def _write_ledger(self) -> None:
        files.write_json(self.folder / _LEDGER, self._ledger)


@contextlib.contextmanager
def tracked(
    options: TrackerOptions, run: RunDir, tree: Mapping[str, object], show: Callable[[str], None]
) -> Iterator[Trackers]:
    """Return a context with the run's trackers open, which are closed however it ends.

    Args:
        options: Which ones.
        run: The run; what a tracker did wrong stays with its notices.
        tree: The run's settings, nested.
        show: Shows a person what a tracker did wrong.
    """

    def say(text: str) -> None:
        show(text)
        content = files.read_json(run.provenance_path)
        content["notices"] = [*content.get("notices", ()), text]
        files.write_json(run.provenance_path, content)

    trackers = Trackers(options=options, folder=run.state_dir, run_name=run.name, say=say)
    trackers.begin(flat_settings(tree))
    try:
        yield trackers
    finally:
        trackers.finish()


def flat_settings(tree: Mapping[str, object]) -> dict[str, object]:
    """Return nested settings by override name; lists as text, as trackers want them."""
    return {
        key: value
        if value is None or isinstance(value, (bool, int, float, str))
        else json.dumps(value, default=str)
        for key, value in flatten(tree).items()
    }
