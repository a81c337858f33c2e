"""Settings in which runs differ, those that only follow others, labels, and pairs of runs.

A settings column of `runs` is spelled exactly like its override (`network.dim`); every other
column is listed in `MEASURED`.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, Literal

import pandas as pd

# What a run saw and was computed with, beyond its settings: two runs compare where these agree.
# Text, None where a folder does not say; two processes that differ are both named ("cpu, cuda").
IDENTITY = (
    "weights_fingerprint",  # of everything planned that changes a weight
    "data_fingerprint",  # images, captions, repeats, buckets of the whole data set
    "base_fingerprint",  # files of the base model and its autoencoder
    "optimizer_source",  # of an optimizer class that comes from no installed package
    "optimizer_version",  # of the package it comes from, for instance "lion-pytorch 0.2.3"
    "torch_version",
    "optbench_version",
    "optbench_commit",  # of a checkout; with + where files differed from it
    "device_kind",  # cpu, cuda, mps
    "gpu",  # its name
    "cpu",  # its name, of runs that were computed on it
    "threads",  # CPU threads, of runs that were computed on it
    "validation_key",  # what validation losses were measured with: images, captions, base, device
    "image_key",  # what images were rendered with, besides the LoRA
    "metric_key",  # what numbers of images were measured with, besides the images
)
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
    "validation_objective",
    "validation_held_out",
    "validation_ood",
    "validation_others",
    "validation_training",
    "update_ratio",
    "d_escape_step",
    "load_average",
    "peak_memory_bytes",
    "optimizer_state_bytes",
    "optimizer_state_8bit_share",
    "lora_bytes",
    "changed",
    "race_phase",  # of a race: tune, whose seed is no evidence, or confirm
    "rate_source",  # one of `rates.RateSource`; None where a folder does not say
    "started",  # when the first process whose steps are in the weights began
    *IDENTITY,
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
# Runs that agree in these, and in dataset.* and loss.*, draw the same at the same step.
_DRAW_SETTINGS = ("base", "seed", "train.batch_size", "train.gradient_accumulation")
_UNLISTED = ("base.", "dataset.", "prompts.", "render.", "validate.")
# What becomes of a finished LoRA, which changes nothing in it: further seeds render no images.
_OF_IMAGES = ("render.", "metric.", "tracker.")
# In what two losses may have been measured unlike, so that they do not compare.
Unlike = Literal[
    "base",
    "resolution",
    "captions",
    "images",
    "clip_skip",
    "dropout",
    "batch",
    "loss",
    "num_steps",
    "validation",
]
# What a training loss is a loss of. Everything else of `dataset` that is not here counts as
# "images": flips, crops, repeats.
_LOSS_SETTINGS: Mapping[str, Unlike] = {
    "dataset.resolution": "resolution",
    "dataset.enable_bucket": "resolution",
    "dataset.bucket_no_upscale": "resolution",
    "dataset.bucket_reso_steps": "resolution",
    "dataset.min_bucket_reso": "resolution",
    "dataset.max_bucket_reso": "resolution",
    "dataset.class_tokens": "captions",
    "dataset.caption_extension": "captions",
    "dataset.enable_wildcard": "captions",
    "dataset.caption_prefix": "captions",
    "dataset.caption_suffix": "captions",
    "dataset.caption_separator": "captions",
    "dataset.secondary_separator": "captions",
    "dataset.shuffle_caption": "captions",
    "dataset.keep_tokens": "captions",
    "dataset.keep_tokens_separator": "captions",
    "dataset.token_warmup_min": "captions",
    "dataset.token_warmup_step": "captions",
    "dataset.caption_tag_dropout_rate": "captions",
    "dataset.caption_dropout_rate": "captions",
    "dataset.caption_dropout_every_n_epochs": "captions",
    "train.max_token_length": "captions",
    "train.clip_skip": "clip_skip",
    "network.dropout": "dropout",
    "network.rank_dropout": "dropout",
    "network.module_dropout": "dropout",
    "train.batch_size": "batch",
    "train.gradient_accumulation": "batch",
}
_NOT_SEEN = ("dataset.num_workers", "dataset.dir", "dataset.reg_dir")  # content counts, not places
_CONTENT = ("data_fingerprint", "base_fingerprint")  # of what a setting names only by its path
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
    records, names = _records(runs), settings_of(runs)
    set_by_hand = set().union(*(_changed(record) or () for record in records))
    configured = [record for record in records if _has_config(record, names)]
    leader_of: dict[str, str] = {}
    for column in varied:
        if column in set_by_hand:
            continue
        group = column.partition(".")[0]
        leaders = [_COMPUTED_FROM.get(column, ""), group if group != column else ""]
        for leader in leaders:
            if leader in varied and _is_function_of(configured, column, leader):
                leader_of[column] = leader
                break
    return leader_of


def differing(runs: pd.DataFrame) -> list[str]:
    """Return the settings in which runs differ, without those that only follow another one.

    Recipes and other groups come first.
    """
    following = followers(runs)
    leading = [column for column in _varied(runs) if column not in following]
    return sorted(leading, key=lambda column: (*GROUPS, column).index(column))


def factors(runs: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """Return what a sweep varies, the seed included, each with its values as they are typed.

    The sweep's question is that of its trainings, where it has any. Numbers rise, null first;
    other values are in the order of the runs.
    """
    question = runs
    for kind in (TRAINING, RESIZE):
        if len(of_kind := runs[runs["kind"] == kind]):
            question = of_kind
            break
    records = known_records(runs)
    varied: dict[str, tuple[str, ...]] = {}
    for name in differing(question) if records else []:
        group = f"{name.partition('.')[0]}."
        values = {shown(row.get(name)): row.get(name) for row in records}
        # Null is a value where another setting of the group is known: this one is switched off
        # then. Else the run has no such setting, or its config is lost.
        if not any(
            row.get(name) is None
            and any(
                key.startswith(group) and key != name and value is not None
                for key, value in row.items()
            )
            for row in records
        ):
            values.pop("null", None)
        ordered = list(values)
        if all(isinstance(value, (int, float)) for value in values.values() if value is not None):
            rising = {text: -math.inf if v is None else float(v) for text, v in values.items()}
            ordered.sort(key=rising.__getitem__)
        varied[name] = tuple(ordered)
    return varied


def has_equal_draws(runs: pd.DataFrame) -> bool:
    """Return whether all runs saw the same images, noise and timesteps at the same step."""
    records = known_records(runs)
    names = [
        str(name)
        for name in runs.columns
        if name in _DRAW_SETTINGS or str(name).partition(".")[0] in ("dataset", "loss")
    ]
    return all(len({repr(record[name]) for record in records}) <= 1 for name in names)


def loss_conditions(record: Mapping[str, Any]) -> tuple[tuple[Unlike, str], ...]:
    """Return what a run's training loss is a loss of: only losses equal in all of it compare.

    A record is a row of the runs frame. A setting that is off is off however it is spelled: null,
    false or 0, and missing in a folder of before it existed.
    """
    conditions: list[tuple[Unlike, str]] = [base_condition(record)]
    for name in sorted(record):
        group = name.partition(".")[0]
        kind = _LOSS_SETTINGS.get(name)
        if kind is None and group == "dataset" and "." in name and name not in _NOT_SEEN:
            kind = "images"
        if kind is None and group == "loss":
            kind = "loss"
        if kind is not None:
            value = record[name]
            is_off = is_missing(value) or value is False or value == 0
            conditions.append((kind, "off" if is_off else shown(value)))
    fingerprint = record.get("data_fingerprint")
    places = [shown(record.get(name)) for name in ("dataset", "dataset.dir", "dataset.reg_dir")]
    images = " ".join(places) if is_missing(fingerprint) else str(fingerprint)
    return (*conditions, ("images", images), ("num_steps", shown(record.get("num_steps"))))


def base_condition(record: Mapping[str, Any]) -> tuple[Unlike, str]:
    """Return which base model a run trained: its content where known, else its name and files."""
    fingerprint = record.get("base_fingerprint")
    names = ("base", "base.path", "base.vae")
    files = " ".join(shown(record.get(name)) for name in names)
    version = shown(record.get("base.v_parameterization"))
    return "base", f"{files if is_missing(fingerprint) else fingerprint} {version}"


def kind_of(config: Mapping[str, Any]) -> str:
    """Return what a config asks for: a training, a resized LoRA, or an original to compare with."""
    if not {"source", "method"} <= config.keys():
        return TRAINING
    return ORIGINAL if config["method"] == "original" else RESIZE


def labels(runs: pd.DataFrame) -> dict[tuple[str, str], str]:
    """Return a short unique name for every (sweep, run): its recipe and what else differs.

    Resized LoRAs are told apart from one another only, and from trainings by a word in front; an
    original that is a training of the same sweep is named like it.
    """
    kinds = runs["kind"] if "kind" in runs else pd.Series(TRAINING, index=runs.index)
    word = "" if kinds.isin((RESIZE, ORIGINAL)).all() else "resized"
    names: dict[tuple[str, str], str] = {}
    for kind in (TRAINING, RESIZE, ORIGINAL):
        part = runs[kinds == kind] if kind != TRAINING else runs[~kinds.isin((RESIZE, ORIGINAL))]
        if len(part):
            names |= _labels_of(part, kind, word)
    trainings = [row for row in _records(runs) if row.get("kind", TRAINING) == TRAINING]
    for row in _records(runs[kinds == ORIGINAL]):
        parts = re.split(r'[/\\"]', str(row.get("source")))
        for training in trainings:
            if training["run"] in parts:
                name = names[training["sweep"], training["run"]]
                names[row["sweep"], row["run"]] = f"{name}, original"
    return names


def _labels_of(runs: pd.DataFrame, kind: str, word: str) -> dict[tuple[str, str], str]:
    columns = differing(runs)
    groups = [column for column in columns if column in GROUPS]
    others = [column for column in columns if column not in GROUPS]
    names: dict[tuple[str, str], str] = {}
    for row in _records(runs):
        words = [str(row[column]) for column in groups if not is_missing(row[column])]
        words += [
            f"{column}={short(column, row[column])}"
            for column in others
            if not is_missing(row[column])
        ]
        if kind == ORIGINAL:
            words = [ORIGINAL, *words]
        elif kind == RESIZE:
            if not words:  # resized in one way only: what decides the size
                sizes = {
                    name: shown(row[name])
                    for name in ("method", "param", "new_dim", "new_conv_dim")
                    if not is_missing(row.get(name))
                }
                words = [f"{n}={v}" for n, v in sizes.items() if (n, v) != ("method", "none")]
            words += filter(None, [word])
        names[row["sweep"], row["run"]] = " ".join(words) or str(row["run"])
    all_labels = list(names.values())
    return {
        key: label
        if all_labels.count(label) == 1 or label == key[1]
        else f"{label} ({key[1][-8:]})"
        for key, label in names.items()
    }


def find_pairs(runs: pd.DataFrame) -> pd.DataFrame:
    """Return every pair of runs of one sweep that differ in exactly one setting.

    A setting that neither run was asked to change is as it ships, and differs only because
    another one does: each recipe's own rate is no second factor beside the recipe. One that is
    changed together with another is a second factor, whatever else the sweep holds. Runs that
    read other images, captions or base files under one name are no pair.
    Differences are `to` minus `from`; numbers go upwards, other values as runs are listed. That of
    training losses is missing where these are losses of something else (`loss_conditions`).
    """
    rows: list[dict[str, Any]] = []
    for _, sweep in runs.groupby(["sweep", *(["kind"] if "kind" in runs else [])], sort=False):
        columns, names = differing(sweep), settings_of(sweep)
        records = [record for record in _records(sweep) if _has_config(record, names)]
        for first, second in itertools.combinations(records, 2):
            changed = _changes(first, second, columns)
            if len(changed) == 1 and _has_equal_content(first, second, changed[0]):
                rows.append(_pair(changed[0], first, second))
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


def _changes(first: Mapping[str, Any], second: Mapping[str, Any], columns: list[str]) -> list[str]:
    """Return the settings among `columns` in which two runs differ by themselves."""
    unlike = [name for name in columns if _spelled(first[name]) != _spelled(second[name])]
    changed_first, changed_second = _changed(first), _changed(second)
    if changed_first is None or changed_second is None or len(unlike) < 2:
        return unlike
    by_hand = {*changed_first, *changed_second, *GROUPS}
    # What is no part of the weights' settings (a base's path) is in no list of changes.
    independent = [name for name in unlike if name in by_hand or name.startswith(_UNLISTED)]
    return independent or unlike


def _has_equal_content(first: Mapping[str, Any], second: Mapping[str, Any], changed: str) -> bool:
    """Return whether two runs read the same files, except those that `changed` itself names."""
    for name, group in zip(_CONTENT, ("dataset", "base"), strict=True):
        contents = first.get(name), second.get(name)
        is_named = changed.partition(".")[0] == group
        if not (is_named or any(map(is_missing, contents)) or contents[0] == contents[1]):
            return False
    return True


def _changed(record: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the settings a run was asked to change, None where it does not say."""
    changed = record.get("changed")
    return tuple(changed.split()) if isinstance(changed, str) else None


def _varied(runs: pd.DataFrame) -> list[str]:
    """Return the settings with more than one value among the runs whose config is known."""
    names = settings_of(runs)
    records = [record for record in _records(runs) if _has_config(record, names)]
    return [
        name
        for name in names
        if not name.startswith(_OF_IMAGES) and len({_spelled(r[name]) for r in records}) > 1
    ]


def _is_function_of(records: Sequence[Mapping[str, Any]], column: str, leader: str) -> bool:
    values: dict[str, set[str]] = {}
    for record in records:
        values.setdefault(_spelled(record[leader]), set()).add(_spelled(record[column]))
    return all(len(of_leader) == 1 for of_leader in values.values())


def _pair(setting: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    values = first[setting], second[setting]
    if all(isinstance(value, (int, float)) for value in values) and values[0] > values[1]:
        first, second = second, first

    def difference(column: str) -> float | None:
        before, after = first[column], second[column]
        return None if is_missing(before) or is_missing(after) else after - before

    row: dict[str, Any] = {
        "sweep": first["sweep"],
        "setting": setting,
        "from_value": shown(first[setting]),
        "to_value": shown(second[setting]),
        "from_run": first["run"],
        "to_run": second["run"],
    }
    for end, record in (("from", first), ("to", second)):
        row[f"{end}_loss"] = record["final_loss"]
        row[f"{end}_seconds_per_step"] = record["seconds_per_step"]
    is_same_loss = loss_conditions(first) == loss_conditions(second)
    row["loss_difference"] = difference("final_loss") if is_same_loss else None
    for name in ("seconds_per_step", "seconds_total"):
        row[f"{name}_difference"] = difference(name)
    return row


def known_records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a frame's rows with None for what is unknown or not finite."""

    def known(value: Any) -> Any:
        value = value.item() if hasattr(value, "item") else value
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return None if type(value).__name__ in ("NAType", "NaTType") else value

    return [
        {str(key): known(value) for key, value in record.items()}
        for record in frame.to_dict("records")
    ]


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
