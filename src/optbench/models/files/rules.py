"""Validate a base model from names, configs and headers, before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

from optbench.errors import BaseError, OptbenchError, Problem
from optbench.models.files import detect, locate
from optbench.models.files.detect import Finding
from optbench.models.files.families import FAMILIES, Family
from optbench.schema import BaseOptions
from optbench.storage.disk import read_text
from optbench.storage.safetensors_header import read_header

_KINDS = "a folder in diffusers layout, a .safetensors file in original layout, or a hub id"


def check_base(options: BaseOptions) -> list[Problem]:
    """Return everything that keeps the options' base from being loaded as their family."""
    family = FAMILIES.get(options.family)
    if family is None:
        return [
            Problem(
                "base.family",
                f"the family {options.family!r}",
                f"one of {', '.join(FAMILIES)}",
                "choose the family your weights belong to",
            )
        ]
    try:
        path = locate.located(options.path)
    except BaseError as error:
        return list(error.problems)
    problems: list[Problem] = []
    kind = locate.kind_of(path)
    if kind == "folder":
        problems += _check_folder(path, family)
    elif kind == "safetensors":
        problems += _check_file(path, family, options)
    elif kind == "pickle":
        problems += check_prediction(options, family, None)
    else:
        found = "where there is none" if kind == "absent" else "whose ending is none known here"
        problems.append(
            Problem(
                "base.path",
                f"{path}, {found}",
                _KINDS,
                f"write base.path=FILE or FOLDER, relative to {Path.cwd()} or absolute",
            )
        )
    return [*problems, *_check_vae(options)]


def check_clip_skip(
    base: BaseOptions, clip_skip: int, *, where: str = "train.clip_skip"
) -> list[Problem]:
    """Return a problem if the text encoder has fewer layers, or its family ignores clip_skip."""
    family = FAMILIES.get(base.family)
    if family is None or clip_skip == 1:
        return []
    if not family.obeys_clip_skip:
        return [
            Problem(
                where,
                str(clip_skip),
                f"1: {family.words} always reads the last layer but one, whatever is set",
                f"write {where}=1",
            )
        ]
    num_layers = _num_text_layers(base, family)
    if num_layers is None or clip_skip <= num_layers:
        return []
    return [
        Problem(
            where,
            f"{clip_skip} with a text encoder of {num_layers} layers",
            f"a whole number from 1 to {num_layers}",
            f"write {where}=1, or 2 for most anime checkpoints",
        )
    ]


def misfit(finding: Finding, family: Family, *, where: str) -> Problem | None:
    """Return why what was found cannot be the base of a family, or None if it can."""
    if finding.is_usable and finding.family in (None, family.name):
        return None
    if finding.is_usable:
        fix = f"write base={finding.family}, or choose another checkpoint"
    else:
        fix = f"choose a whole {family.words} checkpoint that makes pictures from text"
    return Problem(where, finding.words, family.words, fix)


def check_prediction(
    options: BaseOptions, family: Family, predicts_v: bool | None
) -> list[Problem]:
    """Return a problem if a single file's target is known neither from it nor from the options."""
    if family.tells_prediction or predicts_v is not None or options.v_parameterization is not None:
        return []
    return [
        Problem(
            "base.v_parameterization",
            f"null for a single file of {family.words}, in which it cannot be seen",
            "whether the unet predicts v (768-v models) or the noise (base models)",
            "write base.v_parameterization=true for a 768-v model, else false",
        )
    ]


def _num_text_layers(base: BaseOptions, family: Family) -> int | None:
    """Return how many layers the text encoder has; its config alone is read."""
    try:
        path = locate.located(base.path)
        if locate.kind_of(path) != "folder":
            return family.num_text_layers
        config = json.loads(read_text(path / "text_encoder" / "config.json"))
        return int(config["num_hidden_layers"])
    # What is wrong with the base is said where the base is looked at.
    except (OptbenchError, OSError, ValueError, KeyError, TypeError):
        return None


def _check_folder(folder: Path, family: Family) -> list[Problem]:
    where = f"base.path={folder}"
    if problem := misfit(detect.what_folder_is(folder), family, where=where):
        return [problem]
    absent = [part for part in family.folders if not (folder / part).is_dir()]
    if not absent:
        return []
    return [
        Problem(
            "base.path",
            f"{folder} without {', '.join(absent)}",
            f"a model in diffusers layout: the folders {', '.join(family.folders)}",
            "give a folder that save_pretrained wrote, or one .safetensors file",
        )
    ]


def _check_file(file: Path, family: Family, options: BaseOptions) -> list[Problem]:
    try:
        shapes = read_header(file).shapes
    except (OSError, ValueError) as error:
        return [_unreadable("base.path", file, error)]
    finding = detect.what_file_is(shapes)
    if problem := misfit(finding, family, where=f"base.path={file}"):
        return [problem]
    return check_prediction(options, family, finding.predicts_v)


def _check_vae(options: BaseOptions) -> list[Problem]:
    if options.vae is None:
        return []
    path = Path(options.vae)
    kind = locate.kind_of(path)
    if kind == "folder" and (path / "config.json").is_file():
        return []
    if kind == "pickle":
        return []
    if kind == "safetensors":
        try:
            shapes = read_header(path).shapes
        except (OSError, ValueError) as error:
            return [_unreadable("base.vae", path, error)]
        if detect.is_autoencoder(shapes):
            return []
        found = detect.what_file_is(shapes).words
    else:
        found = "no config.json of an autoencoder" if kind == "folder" else "nothing of the kind"
    return [
        Problem(
            "base.vae",
            f"{path}: {found}",
            (
                "an autoencoder: a folder with its config.json, or one .safetensors file in "
                "original layout"
            ),
            f"write base.vae=FILE or FOLDER, relative to {Path.cwd()} or absolute",
        )
    ]


def _unreadable(where: str, file: Path, error: Exception) -> Problem:
    return Problem(
        where, f"{file}: {error}", "a whole safetensors file", "copy or download the file again"
    )
