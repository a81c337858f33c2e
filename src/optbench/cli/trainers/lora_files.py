"""What a LoRA file says of its own training, as settings of ours."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optbench.cli.trainers import onetrainer
from optbench.cli.trainers.families import family
from optbench.cli.trainers.imported import Imported
from optbench.cli.trainers.kohya import import_script
from optbench.cli.trainers.kohya.option_names import RECIPES
from optbench.cli.trainers.kohya.read_script import KohyaTraining
from optbench.cli.trainers.options import options
from optbench.cli.trainers.trees import Training
from optbench.errors import ConfigError, DamagedFileError, Problem
from optbench.storage.safetensors_header import read_header

_CLASS = re.compile(r"([\w.]+)\((.*)\)", re.DOTALL)
_ARGUMENT = re.compile(r"(\w+)=((?:[^,(\[]|\([^)]*\)|\[[^\]]*\])*)")
_NONE = ("None", "", "null")
# What the file calls otherwise than the option; all others are ss_OPTION.
_NAMES: Mapping[str, str] = {
    "ss_sd_model_name": "pretrained_model_name_or_path",
    "ss_vae_name": "vae",
    "ss_batch_size_per_device": "train_batch_size",
    "ss_debiased_estimation": "debiased_estimation_loss",
}
_READ = (  # by a line of their own below, or of no use
    *("ss_optimizer", "ss_network_args", "ss_dataset_dirs", "ss_reg_dataset_dirs", "ss_datasets"),
    *("ss_num_epochs", "ss_max_train_steps", "ss_base_model_version", "ss_v2", "ss_resolution"),
)


def convert_lora_file(path: Path) -> Imported:
    """Return the training that a file's metadata tells of, as far as it does.

    Raises:
        DamagedFileError: If the file is absent or no safetensors file.
        ConfigError: If it tells nothing of its training.
    """
    try:
        metadata = dict(read_header(path).metadata)
    except (OSError, ValueError) as error:
        raise DamagedFileError(
            Problem(str(path), str(error), "a whole safetensors file", "check the path")
        ) from error
    if "ot_config" in metadata:
        return _from_onetrainer(path, metadata["ot_config"])
    if not any(name in metadata for name in ("ss_network_dim", "ss_learning_rate", "ss_optimizer")):
        raise ConfigError(_untold(path, metadata))
    return _from_kohya(path, metadata)


def _from_onetrainer(path: Path, written: str) -> Imported:
    try:
        config = json.loads(written)
        if not isinstance(config, dict):
            raise TypeError("no table of settings")
    except (ValueError, TypeError) as error:
        raise DamagedFileError(
            Problem(f"ot_config of {path}", str(error), "OneTrainer's settings", "use another file")
        ) from error
    concepts, samples = config.pop("concepts", None) or [], config.pop("samples", None) or []
    config = {key: value for key, value in config.items() if not key.startswith("__")}
    return onetrainer.convert(Training("onetrainer", path, config, concepts, samples))


def _from_kohya(path: Path, metadata: Mapping[str, str]) -> Imported:
    version = metadata.get("ss_base_model_version", "sd_v1")
    named, words = family(version.replace("_v1", "15").replace("_v2", "2").split("-")[0])
    training = KohyaTraining(is_sdxl=version.startswith("sdxl"), names_script=True)
    if not version.startswith(("sd_", "sdxl")) and named is None:
        training.script = f"{version}_train_network"
    given: dict[str, Any] = {}
    for key, value in metadata.items():
        name = _NAMES.get(key, key.removeprefix("ss_"))
        option = options().get(name)
        if not key.startswith("ss_") or key in _READ or option is None or value in _NONE:
            continue
        try:
            given[name] = option.parse(value)
        except ValueError:
            training.unknown.append(f"{key}={value}: no value of type {option.type}")
    if metadata.get("ss_v2") == "True":
        given["v2"] = True
    if size := re.findall(r"\d+", metadata.get("ss_resolution", "")):
        given["resolution"] = ",".join(size[:2])
    if written := metadata.get("ss_optimizer"):
        _add_optimizer(given, written)
    arguments = _json(metadata.get("ss_network_args"))
    given["network_args"] = [f"{key}={value}" for key, value in arguments.items()]
    _add_length(given, metadata)
    training.options.update(given)
    for key, is_reg in (("ss_dataset_dirs", False), ("ss_reg_dataset_dirs", True)):
        folders = _json(metadata.get(key))
        if folders:
            listed = ", ".join(
                f"{name} ({_number(facts, 'img_count')} images x {_number(facts, 'n_repeats')})"
                for name, facts in folders.items()
            )
            training.elsewhere.append(
                f"{'reg_data_dir' if is_reg else 'train_data_dir'} held {listed}"
            )
    imported = import_script.convert(training, folder=path.parent)
    imported.notes.append(
        "a file does not say all: caption_extension, keep_tokens_separator, prompts and where the "
        "images lie are not in it"
    )
    return imported


def _add_optimizer(given: dict[str, Any], written: str) -> None:
    match = _CLASS.fullmatch(written.strip())
    path, arguments = (match[1], match[2]) if match else (written.strip(), "")
    name = path.rpartition(".")[2]
    found = _ARGUMENT.findall(arguments)
    values = [f"{key}={value.strip()}" for key, value in found]
    if name == "SGD" and "nesterov=True" in values:
        values.remove("nesterov=True")
        name = "SGDNesterov"
    given["optimizer_type"] = name if name.lower() in RECIPES else path
    given["optimizer_args"] = values


def _add_length(given: dict[str, Any], metadata: Mapping[str, str]) -> None:
    """Take the epochs; where steps ended the run earlier, the steps."""
    epochs, steps = metadata.get("ss_num_epochs"), metadata.get("ss_max_train_steps")
    batches = metadata.get("ss_num_batches_per_epoch")
    accumulated = int(metadata.get("ss_gradient_accumulation_steps") or 1)
    if epochs and steps and batches and epochs.isdigit() and batches.isdigit():
        whole = int(epochs) * -(-int(batches) // accumulated)
        if str(whole) == steps:
            given["max_train_epochs"] = int(epochs)
            given.pop("max_train_steps", None)
            return
    if steps and steps.isdigit():
        given["max_train_steps"] = int(steps)
    elif epochs and epochs.isdigit():
        given["max_train_epochs"] = int(epochs)


def _json(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text) if text else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _number(facts: Any, name: str) -> Any:
    return facts.get(name, "?") if isinstance(facts, dict) else "?"


def _untold(path: Path, metadata: Mapping[str, str]) -> Problem:
    software = _json(metadata.get("software")).get("name")
    steps = _json(metadata.get("training_info")).get("step")
    said = [f"it is of {software}"] if software else []
    said += [f"after {steps} steps"] if steps else []
    said += (
        [f"on {metadata['ss_base_model_version']}"] if "ss_base_model_version" in metadata else []
    )
    about = f" ({', '.join(said)})" if said else ""
    return Problem(
        str(path),
        f"no settings in the file{about}",
        "metadata of a training: ss_network_dim, ss_learning_rate ..., or ot_config",
        "import the configuration it was trained with instead: optbench import CONFIG",
    )
