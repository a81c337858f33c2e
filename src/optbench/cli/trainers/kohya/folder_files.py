"""Read folders of images that a file lists for kohya's trainer, and TOML files made around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optbench.cli.trainers.folders import ImageFolder
from optbench.cli.trainers.kohya.read_script import KohyaTraining, take_all
from optbench.cli.trainers.options import options, table
from optbench.errors import ConfigError, Problem

# What --dataset_config and subsets call otherwise than the command line.
_NAMES = {"batch_size": "train_batch_size"}
_OF_FOLDERS = ("image_dir", "num_repeats", "is_reg", "class_tokens", "name")
_LIST_ARGS = ("network_args", "optimizer_args", "lr_scheduler_args")


def add_datasets(training: KohyaTraining, content: Mapping[str, Any]) -> None:
    """Add the folders of a file for --dataset_config, whose options win over the command's."""
    general = content.get("general", {})
    subsets = [
        {**general, **_without(dataset, "subsets"), **subset}
        for dataset in content.get("datasets", ())
        for subset in dataset.get("subsets", ())
    ]
    _add_subsets(training, subsets)


def from_lora_easy(content: Mapping[str, Any], path: Path) -> KohyaTraining:
    """Return the training of a TOML file of LoRA_Easy_Training_Scripts.

    Raises:
        ConfigError: If values are of another type than the trainer takes.
    """
    training = KohyaTraining(names_script=True)
    given: dict[str, Any] = {}
    general: dict[str, Any] = {}
    subsets: Sequence[Mapping[str, Any]] = ()
    for section in content.values():
        if not isinstance(section, Mapping):
            continue
        given |= section.get("args") or {}
        inner = section.get("dataset_args") or {}
        if isinstance(inner, list):
            subsets = inner
        else:
            general |= inner
    training.is_sdxl = bool(given.pop("sdxl", False))
    if ratio := given.pop("warmup_ratio", None):
        given["lr_warmup_steps"] = float(ratio)
    if given.pop("fa", False):
        given["network_module"] = "networks.lora_fa"
    arguments = given.get("network_args")
    for name, module in (("algo", "lycoris.kohya"), ("unit", "networks.dylora")):
        if isinstance(arguments, Mapping) and name in arguments:
            given["network_module"] = module
    for name in _LIST_ARGS:
        if isinstance(inner := given.get(name), Mapping):
            given[name] = [f"{key}={_joined(value)}" for key, value in inner.items()]
    for name, value in list(given.items()):
        option = table("lora-easy").get(name)
        if option is not None:
            del given[name]
            if option.how == "missing" and value:
                training.unknown.append(f"{name}={value}: {option.meaning}")
        elif isinstance(value, list) and name not in _LIST_ARGS:
            given[name] = _joined(value)
    given = {name: value for name, value in given.items() if value not in (False, "", None)}
    take_all(training, given, path, options())
    _add_subsets(training, [{**general, **subset} for subset in subsets])
    return training


def _add_subsets(training: KohyaTraining, subsets: Sequence[Mapping[str, Any]]) -> None:
    merged: dict[str, Any] = {}
    differ: dict[str, list[Any]] = {}
    for index, subset in enumerate(subsets):
        if subset.get("image_dir"):
            training.folders.append(
                ImageFolder(
                    path=str(subset["image_dir"]),
                    repeats=int(subset.get("num_repeats", 1)),
                    class_words=str(subset.get("class_tokens") or ""),
                    is_regularization=bool(subset.get("is_reg", False)),
                )
            )
        for name, value in subset.items():
            if name in _OF_FOLDERS:
                continue
            if index and merged.get(name) != value:
                differ.setdefault(name, [merged.get(name)]).append(value)
            else:
                merged[name] = value
    problems = []
    for name, value in merged.items():
        kohya = _NAMES.get(name, name)
        option = options().get(kohya)
        if option is None:
            training.unknown.append(f"{name}={value}: of the data set; no such option here")
            continue
        try:
            training.options[kohya] = option.parse(_joined(value))
        except ValueError as error:
            problems.append(
                Problem(
                    f"{name} of the data set",
                    str(error),
                    f"a value of type {option.type}",
                    "correct it",
                )
            )
    if problems:
        raise ConfigError(*problems)
    training.unknown += [
        f"{name}: {', '.join(map(str, values))}, one for each folder; the first for all here"
        for name, values in differ.items()
    ]


def _joined(value: Any) -> Any:
    return ",".join(map(str, value)) if isinstance(value, list) else value


def _without(tree: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in tree.items() if key != name}
