"""Tell whose file it is by what is in it, and bring files of one training together."""

from __future__ import annotations

import csv
import functools
import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from optbench.cli.trainers import ai_toolkit, diffusion_pipe, musubi, onetrainer, peft, simpletuner
from optbench.cli.trainers.imported import Imported
from optbench.cli.trainers.kohya import import_script, read_script
from optbench.cli.trainers.kohya.folder_files import add_datasets, from_lora_easy
from optbench.cli.trainers.lora_files import convert_lora_file
from optbench.cli.trainers.options import table
from optbench.cli.trainers.trees import Training
from optbench.errors import ConfigError, Problem
from optbench.storage.disk import read_text

Kind = Literal[
    "kohya",
    "kohya-data",
    "lora-easy",
    "musubi",
    "musubi-data",
    "onetrainer",
    "onetrainer-data",
    "onetrainer-prompts",
    "ai-toolkit",
    "simpletuner",
    "simpletuner-data",
    "simpletuner-prompts",
    "diffusion-pipe",
    "diffusion-pipe-data",
    "peft",
    "lora-file",
]
KINDS_IN_WORDS = (
    "a command, TOML or GUI preset of kohya's trainer, a TOML of LoRA_Easy_Training_Scripts, "
    "musubi-tuner or diffusion-pipe, a JSON of OneTrainer, SimpleTuner or PEFT, a YAML of "
    "ai-toolkit, a LoRA file (.safetensors), or data sets of these"
)
_DATA = ("-data", "-prompts")
_MUSUBI_PROGRAM = re.compile(
    r"(?:^|[\\/])(zimage|flux_2|flux_kontext|qwen_image|wan|hv|hv_1_5|fpack|krea2|ideogram4"
    r"|kandinsky5|hidream_o1)_train(_network)?(_self_flow)?(\.py)?$"
)
_MUSUBI_WORD = re.compile(
    _MUSUBI_PROGRAM.pattern.replace("$", r"(?=[\s\"']|$)").replace("^", r"^|[\s\"']"), re.M
)
_ONETRAINER = ("training_method", "concept_file_name", "learning_rate_scheduler", "lora_decompose")
_SIMPLETUNER = ("model_family", "data_backend_config", "aspect_bucket_rounding", "lora_type")
_MUSUBI = ("dit", "timestep_sampling", "discrete_flow_shift", "blocks_to_swap")
_GUI = ("LoRA_type", "max_resolution", "train_data_dir", "pretrained_model_name_or_path")
_PEFT = ("peft_type", "optimizer_kwargs", "optimizer_type")
_ASSIGNED = re.compile(r"\s*(?:export\s+)?([A-Z][A-Z0-9_]*)=(.*)")


@dataclass(frozen=True, slots=True)
class Document:
    """A file that was read, and what it is."""

    path: Path
    kind: Kind
    content: Any


def read(path: Path) -> Document:
    """Return a file and whose it is.

    Raises:
        ConfigError: If it cannot be read, or is nobody's.
    """
    if path.suffix.lower() == ".safetensors":
        return Document(path, "lora-file", None)
    try:
        text = read_text(path, encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise _unreadable(path, "no such file") from error
    except (OSError, ValueError) as error:
        raise _unreadable(path, f"{type(error).__name__}: {error}") from error
    try:
        kind, content = _told(path, text)
    except (
        ValueError,
        RecursionError,
        tomllib.TOMLDecodeError,
        YAMLError,
        OmegaConfBaseException,
    ) as error:
        raise _unreadable(path, " ".join(f"{type(error).__name__}: {error}".split())) from error
    if kind is None:
        raise _unreadable(path, "settings of no trainer that is known")
    return Document(path, kind, content)


def _told(path: Path, text: str) -> tuple[Kind | None, Any]:
    suffix = path.suffix.lower()
    is_other = suffix in (".toml", ".yaml", ".yml", ".sh", ".ps1", ".bat")
    if suffix == ".json" or (not is_other and text.lstrip()[:1] in ("{", "[")):
        content = json.loads(text)
        return _told_json(content), content
    if suffix == ".toml":
        content = tomllib.loads(text)
        return _told_toml(content), content
    if suffix in (".yaml", ".yml"):
        content = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
        return ("ai-toolkit" if _processes(content) else None), content
    variables = {
        match[1]: match[2].strip().strip("\"'")
        for match in map(_ASSIGNED.match, text.splitlines())
        if match
    }
    if {"MODEL_FAMILY", "DATALOADER_CONFIG", "MAX_NUM_STEPS"} & variables.keys():
        return "simpletuner", _from_environment(variables)
    return ("musubi" if _MUSUBI_WORD.search(text) else "kohya"), text


def _told_json(content: Any) -> Kind | None:
    if isinstance(content, list):
        first = content[0] if content else None
        if not isinstance(first, dict):
            return None
        if first.keys() & {"instance_data_dir", "dataset_type", "cache_dir_vae"}:
            return "simpletuner-data"
        if first.keys() & {"balancing", "text", "image", "include_subdirectories"}:
            return "onetrainer-data"
        return "onetrainer-prompts" if "prompt" in first else None
    if not isinstance(content, dict):
        return None
    names = {str(key).removeprefix("--") for key in content}
    if _processes(content):
        return "ai-toolkit"
    if names & set(_ONETRAINER):
        return "onetrainer"
    if names & set(_PEFT) and not names & set(_GUI[:3]):
        return "peft"
    if names & set(_SIMPLETUNER):
        return "simpletuner"
    if names & set(_GUI):
        return "kohya"
    texts = content and all(isinstance(value, str) for value in content.values())
    return "simpletuner-prompts" if texts else None


def _told_toml(content: Mapping[str, Any]) -> Kind | None:
    if isinstance(content.get("model"), dict) and content.keys() & {
        "adapter",
        "dataset",
        "optimizer",
    }:
        return "diffusion-pipe"
    if isinstance(content.get("directory"), list):
        return "diffusion-pipe-data"
    tables = [value for value in content.values() if isinstance(value, dict)]
    if any(inner.keys() & {"args", "dataset_args"} for inner in tables):
        return "lora-easy"
    sets = content.get("datasets")
    if isinstance(sets, list):
        names = {str(key) for one in sets if isinstance(one, dict) for key in one}
        is_musubi = any(name.endswith(("_directory", "_jsonl_file")) for name in names)
        return "musubi-data" if is_musubi else "kohya-data"
    names = set(content) | {key for inner in tables for key in inner}
    module = str(content.get("network_module", ""))
    if names & set(_MUSUBI) or module.startswith("networks.lora_"):
        return "musubi"
    return "simpletuner" if names & {"model_family", "data_backend_config"} else "kohya"


def _processes(content: Any) -> list[Mapping[str, Any]]:
    config = content.get("config") if isinstance(content, dict) else None
    listed = config.get("process") if isinstance(config, dict) else None
    return [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []


@functools.cache
def _environment() -> Mapping[str, str]:
    file = resources.files(__package__).joinpath("tables", "simpletuner-env.csv")
    rows = csv.DictReader(file.read_text(encoding="utf-8").splitlines())
    return {row["variable"]: row["option"] for row in rows}


def _from_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return SimpleTuner's variables as its options; its older scripts had no others."""
    return {
        _environment().get(name, name.lower()): value for name, value in variables.items() if value
    }


def convert(documents: Sequence[Document]) -> list[Imported]:
    """Return what the files mean together: data sets belong to the training of their trainer.

    Raises:
        ConfigError: If there are data sets alone, or of another trainer.
    """
    trainings = [document for document in documents if not document.kind.endswith(_DATA)]
    data = [document for document in documents if document.kind.endswith(_DATA)]
    trainers = {document.kind for document in trainings}
    problems = [
        Problem(
            str(document.path),
            f"{document.kind.rpartition('-')[2]} of {document.kind.rpartition('-')[0]} without its "
            "training",
            "the training's file beside it",
            "give both: optbench import TRAINING DATA",
        )
        for document in data
        if document.kind.rpartition("-")[0] not in trainers
        and not (document.kind == "kohya-data" and "lora-easy" in trainers)
    ]
    if problems:
        raise ConfigError(*problems)
    peft_files = [document for document in trainings if document.kind == "peft"]
    others = [document for document in trainings if document.kind != "peft"]
    imported = [_converted(document, data, _CONVERTERS[document.kind]) for document in others]
    if peft_files:
        imported.append(_converted(peft_files[0], peft_files, _peft))
    return imported


def _converted(
    document: Document,
    data: Sequence[Document],
    converter: Callable[[Document, Sequence[Document]], Imported],
) -> Imported:
    """Return what a file means; values of a shape that its trainer could not read are refused."""
    try:
        return converter(document, data)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise ConfigError(
            Problem(
                str(document.path),
                f"a value of another shape than is read there ({type(error).__name__}: {error})",
                "a file that its trainer reads",
                f"start it there once, and correct {document.path.name}",
            )
        ) from error


def _kohya(document: Document, data: Sequence[Document]) -> Imported:
    training = read_script.read_training(document.path)
    named = training.options.get("dataset_config")
    contents = [one.content for one in data if one.kind == "kohya-data"]
    contents += _beside(document, named, "kohya-data") if named and not contents else []
    for content in contents:
        training.options.pop("dataset_config", None)
        add_datasets(training, content)
    return import_script.convert(training, folder=document.path.parent)


def _lora_easy(document: Document, data: Sequence[Document]) -> Imported:
    training = from_lora_easy(document.content, document.path)
    return import_script.convert(training, folder=document.path.parent)


def _musubi(document: Document, data: Sequence[Document]) -> Imported:
    program = ""
    if isinstance(document.content, str):
        read_command = read_script.read_command(
            document.content,
            document.path,
            known=table("musubi"),
            script=_MUSUBI_PROGRAM,
        )
        settings, unknown = read_command.options, [*read_command.unknown]
        program = read_command.script
    else:
        settings, unknown = dict(document.content), []
    contents = [one.content for one in data if one.kind == "musubi-data"]
    contents = contents or _beside(document, settings.get("dataset_config"), "musubi-data")
    sets = [
        {**content.get("general", {}), **one} for content in contents for one in content["datasets"]
    ]
    imported = musubi.convert(Training("musubi", document.path, settings, sets), program=program)
    imported.lost[:0] = unknown
    return imported


def _onetrainer(document: Document, data: Sequence[Document]) -> Imported:
    settings = document.content
    sets = _of_kind(data, "onetrainer-data") or settings.get("concepts")
    sets = sets or _beside(
        document, settings.get("concept_file_name"), "onetrainer-data", flat=True
    )
    prompts = _of_kind(data, "onetrainer-prompts") or settings.get("samples")
    prompts = prompts or _beside(
        document, settings.get("sample_definition_file_name"), "onetrainer-prompts", flat=True
    )
    known = {key: value for key, value in settings.items() if key not in ("concepts", "samples")}
    return onetrainer.convert(
        Training("onetrainer", document.path, known, _listed(sets), _listed(prompts))
    )


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def _ai_toolkit(document: Document, data: Sequence[Document]) -> Imported:
    processes = _processes(document.content)
    settings = dict(processes[0])
    sets = _listed(settings.pop("datasets", None) or [])
    imported = ai_toolkit.convert(Training("ai-toolkit", document.path, settings, sets))
    if len(processes) > 1:
        imported.lost.append(
            f"{len(processes) - 1} more processes of this job: only the first is read"
        )
    return imported


def _simpletuner(document: Document, data: Sequence[Document]) -> Imported:
    settings = {str(key).removeprefix("--"): value for key, value in document.content.items()}
    sets = _of_kind(data, "simpletuner-data")
    sets = sets or _beside(
        document, settings.get("data_backend_config"), "simpletuner-data", flat=True
    )
    library = [one.content for one in data if one.kind == "simpletuner-prompts"]
    library = library or _beside(
        document, settings.get("user_prompt_library"), "simpletuner-prompts"
    )
    prompts = [{"prompt": text} for one in library for text in one.values()]
    return simpletuner.convert(Training("simpletuner", document.path, settings, sets, prompts))


def _diffusion_pipe(document: Document, data: Sequence[Document]) -> Imported:
    settings = document.content
    contents = [one.content for one in data if one.kind == "diffusion-pipe-data"]
    contents = contents or _beside(document, settings.get("dataset"), "diffusion-pipe-data")
    sets = []
    for content in contents:
        shared = {key: value for key, value in content.items() if key != "directory"}
        sets += [{**shared, **one} for one in content["directory"]]
    return diffusion_pipe.convert(Training("diffusion-pipe", document.path, settings, sets))


def _peft(document: Document, files: Sequence[Document]) -> Imported:
    settings: dict[str, Any] = {}
    for one in files:
        settings |= one.content
    return peft.convert(Training("peft", document.path, settings))


def _lora_file(document: Document, data: Sequence[Document]) -> Imported:
    return convert_lora_file(document.path)


_CONVERTERS: Mapping[str, Callable[[Document, Sequence[Document]], Imported]] = {
    "kohya": _kohya,
    "lora-easy": _lora_easy,
    "musubi": _musubi,
    "onetrainer": _onetrainer,
    "ai-toolkit": _ai_toolkit,
    "simpletuner": _simpletuner,
    "diffusion-pipe": _diffusion_pipe,
    "lora-file": _lora_file,
}


def _of_kind(data: Sequence[Document], kind: Kind) -> list[Any]:
    return [one for document in data if document.kind == kind for one in document.content]


def _beside(document: Document, named: Any, kind: Kind, *, flat: bool = False) -> list[Any]:
    """Return what the file holds that a training names, from where it is found; else nothing."""
    if not named:
        return []
    path = Path(str(named))
    places = [path, document.path.parent / path, document.path.parent / path.name]
    place = next((place for place in places if place.is_file()), None)
    if place is None:
        return []
    read_document = read(place)
    if read_document.kind != kind:
        return []
    return list(read_document.content) if flat else [read_document.content]


def _unreadable(path: Path, found: str) -> ConfigError:
    return ConfigError(
        Problem(str(path), found, KINDS_IN_WORDS, "give the file that you train with there")
    )
