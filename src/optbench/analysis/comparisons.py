"""What differs between runs: settings, those that only follow others, names, and pairs.

A settings column of `runs` is spelled exactly like its override (`network.dim`); every other
column is listed in `MEASURED`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import pandas as pd

MEASURED = (
    "sweep",
    "run",
    "kind",
    "status",
    "reason",
    "num_epochs",
    "num_steps",
    "seconds_total",
    "seconds_per_step",
    "seconds_data",
    "seconds_forward",
    "seconds_backward",
    "seconds_optimizer",
    "seconds_validate",
    "seconds_render",
    "seconds_save",
    "final_loss",
    "validation_held_out",
    "validation_training",
    "update_ratio",
    "d_escape_step",
    "load_average",
    "peak_memory_bytes",
    "optimizer_state_bytes",
    "optimizer_state_8bit_share",
    "lora_bytes",
    "changed",
)
GROUPS = ("optimizer", "base", "dataset", "network", "lr_scheduler", "prompts")
TRAINING, RESIZE, ORIGINAL = "training", "resize", "original"  # kinds of runs
# A default computed from another setting follows it, unless it was varied on its own.
_COMPUTED_FROM = {
    "network.alpha": "network.dim",
    "network.conv_alpha": "network.conv_dim",
    "optimizer.unet_lr": "optimizer.lr",
    "optimizer.text_encoder_lr": "optimizer.lr",
    "network.dim_from_weights": "network.weights",
    "param": "method",
}
_UNLISTED = ("base.", "dataset.", "prompts.", "render.", "validate.")
_PAIR_COLUMNS = (
    "sweep",
    "setting",
    "from_value",
    "to_value",
    "from_run",
    "to_run",
    "from_loss",
    "to_loss",
    "loss_difference",
    "from_seconds_per_step",
    "to_seconds_per_step",
    "seconds_per_step_difference",
    "seconds_total_difference",
)


def settings_of(runs: pd.DataFrame) -> list[str]:
    """Return the names of all settings columns."""
    return [str(column) for column in runs.columns if column not in MEASURED]


def followers(runs: pd.DataFrame) -> dict[str, str]:
    """Return the settings that differ only because another one does, by their name.

    `optimizer.*` follows the recipe where every recipe has one value of it in these runs, and
    `network.alpha` follows `network.dim` where every dim has one. What a run was asked to have
    otherwise than it ships follows nothing.
    """
    varied = _varied(runs)
    asked = set().union(*(_changed(record) or () for record in _records(runs)))
    found: dict[str, str] = {}
    for column in varied:
        if column in asked:
            continue
        group = column.partition(".")[0]
        leaders = [_COMPUTED_FROM.get(column, ""), group if group != column else ""]
        for leader in leaders:
            if leader in varied and _is_function_of(runs, column, leader):
                found[column] = leader
                break
    return found


def differing(runs: pd.DataFrame) -> list[str]:
    """Return the settings in which runs differ, without those that only follow another one.

    Recipes and other groups come first.
    """
    following = followers(runs)
    found = [column for column in _varied(runs) if column not in following]
    return sorted(found, key=lambda column: (*GROUPS, column).index(column))


def kind_of(config: Mapping[str, Any]) -> str:
    """Return what a config asks for: a training, a resized LoRA, or an original to compare with."""
    if not {"source", "method"} <= config.keys():
        return TRAINING
    return ORIGINAL if config["method"] == "original" else RESIZE


def labels(runs: pd.DataFrame) -> dict[tuple[str, str], str]:
    """Return a short unique name for every (sweep, run): its recipe and what else differs.

    Resized LoRAs are told apart from one another only, and from trainings by a word in front.
    """
    kinds = runs["kind"] if "kind" in runs else pd.Series(TRAINING, index=runs.index)
    word = "" if kinds.isin((RESIZE, ORIGINAL)).all() else "resized"
    found: dict[tuple[str, str], str] = {}
    for kind in (TRAINING, RESIZE, ORIGINAL):
        part = runs[kinds == kind] if kind != TRAINING else runs[~kinds.isin((RESIZE, ORIGINAL))]
        if len(part):
            found |= _labels_of(part, kind, word)
    return found


def _labels_of(runs: pd.DataFrame, kind: str, word: str) -> dict[tuple[str, str], str]:
    columns = differing(runs)
    named = [column for column in columns if column in GROUPS]
    others = [column for column in columns if column not in GROUPS]
    found: dict[tuple[str, str], str] = {}
    for row in _records(runs):
        words = [str(row[column]) for column in named if not is_missing(row[column])]
        words += [
            f"{column}={short(column, row[column])}"
            for column in others
            if not is_missing(row[column])
        ]
        if kind == ORIGINAL:
            words = [ORIGINAL, *words]
        elif kind == RESIZE:
            words = [*(words or _asked_size(row)), *filter(None, [word])]
        found[row["sweep"], row["run"]] = " ".join(words) or str(row["run"])
    taken = list(found.values())
    return {
        key: label if taken.count(label) == 1 or label == key[1] else f"{label} ({key[1][-8:]})"
        for key, label in found.items()
    }


def _asked_size(row: Mapping[str, Any]) -> list[str]:
    """Return what decides the size of a LoRA that was resized in one way only."""
    names = ("method", "param", "new_dim", "new_conv_dim")
    known = [(name, shown(row[name])) for name in names if not is_missing(row.get(name))]
    return [f"{name}={value}" for name, value in known if (name, value) != ("method", "none")]


def find_pairs(runs: pd.DataFrame) -> pd.DataFrame:
    """Return every pair of runs of one sweep that differ in exactly one setting.

    A setting that neither run was asked to change is as it ships, and differs only because
    another one does: each recipe's own rate is no second factor beside the recipe. One that is
    changed together with another is a second factor, whatever else the sweep holds.
    Differences are `to` minus `from`; numbers go upwards, other values as runs are listed.
    """
    rows: list[dict[str, Any]] = []
    for _, sweep in runs.groupby(["sweep", *(["kind"] if "kind" in runs else [])], sort=False):
        columns, names = differing(sweep), settings_of(sweep)
        records = [record for record in _records(sweep) if _has_config(record, names)]
        for one, other in itertools.combinations(records, 2):
            changed = _factors(one, other, columns)
            if len(changed) == 1:
                rows.append(_pair(changed[0], one, other))
    frame = pd.DataFrame(rows, columns=list(_PAIR_COLUMNS))
    return frame.sort_values("setting", kind="stable", ignore_index=True)


def shown(value: Any) -> str:
    """Return a setting's value as one would type it."""
    if is_missing(value):
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def short(column: str, value: Any) -> str:
    """Return a setting's value for a label: of a file its name alone."""
    is_file = column == "network.weights" and not is_missing(value) and value != "null"
    return PurePath(str(value)).stem if is_file else shown(value)


def is_missing(value: Any) -> bool:
    """Return whether a single value of a frame is absent."""
    return value is None or value is pd.NA or (isinstance(value, float) and value != value)


def _factors(one: Mapping[str, Any], other: Mapping[str, Any], columns: list[str]) -> list[str]:
    """Return the settings among `columns` in which two runs differ by themselves."""
    unlike = [name for name in columns if _spelled(one[name]) != _spelled(other[name])]
    asked = [_changed(one), _changed(other)]
    if asked[0] is None or asked[1] is None or len(unlike) < 2:
        return unlike
    wanted = {*asked[0], *asked[1], *GROUPS}
    # What is no part of the weights' settings (a base's path) is in no list of changes.
    own = [name for name in unlike if name in wanted or name.startswith(_UNLISTED)]
    return own or unlike


def _changed(record: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the settings a run was asked to change, None where it does not say."""
    said = record.get("changed")
    return tuple(said.split()) if isinstance(said, str) else None


def _varied(runs: pd.DataFrame) -> list[str]:
    """Return the settings with more than one value among the runs whose config is known."""
    names = settings_of(runs)
    known = [record for record in _records(runs) if _has_config(record, names)]
    return [name for name in names if len({_spelled(record[name]) for record in known}) > 1]


def _is_function_of(runs: pd.DataFrame, column: str, leader: str) -> bool:
    names = settings_of(runs)
    values: dict[str, set[str]] = {}
    for record in _records(runs):
        if _has_config(record, names):
            values.setdefault(_spelled(record[leader]), set()).add(_spelled(record[column]))
    return all(len(found) == 1 for found in values.values())


def _pair(setting: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    values = one[setting], other[setting]
    if all(isinstance(value, (int, float)) for value in values) and values[0] > values[1]:
        one, other = other, one
    row: dict[str, Any] = {
        "sweep": one["sweep"],
        "setting": setting,
        "from_value": shown(one[setting]),
        "to_value": shown(other[setting]),
        "from_run": one["run"],
        "to_run": other["run"],
    }
    for end, record in (("from", one), ("to", other)):
        row[f"{end}_loss"] = record["final_loss"]
        row[f"{end}_seconds_per_step"] = record["seconds_per_step"]
    row["loss_difference"] = _minus(other["final_loss"], one["final_loss"])
    for name in ("seconds_per_step", "seconds_total"):
        row[f"{name}_difference"] = _minus(other[name], one[name])
    return row


def _minus(one: Any, other: Any) -> float | None:
    return None if is_missing(one) or is_missing(other) else one - other


def _records(runs: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in runs.to_dict("records")]


def _has_config(record: Mapping[str, Any], names: list[str]) -> bool:
    return any(not is_missing(record[name]) for name in names)


def _spelled(value: Any) -> str:
    """Return a value as text that is equal exactly when the values are; 16 is 16.0."""
    if is_missing(value):
        return "null"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return repr(float(value))
    return f"{type(value).__name__} {value}"
