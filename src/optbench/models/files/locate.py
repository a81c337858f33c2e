"""Locate `base.path` on this disk: a folder, one file, or a hub id's folder."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any, Literal

from optbench.errors import BaseError, Problem
from optbench.storage import hashing

Kind = Literal["folder", "safetensors", "pickle", "absent", "other"]

PICKLES = (".ckpt", ".pt", ".pth", ".bin")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# One copy of the weights, in full precision, of the parts that are used.
_WANTED = (
    "model_index.json",
    "*/*.json",
    "*/*.txt",
    "*/model.safetensors",
    "*/model-*.safetensors",
    "*/diffusion_pytorch_model.safetensors",
    "*/diffusion_pytorch_model-*.safetensors",
)
_UNWANTED = ("safety_checker/*", "feature_extractor/*", "image_encoder/*")


def kind_of(path: Path) -> Kind:
    """Return what lies at a path, by its name and nothing inside it."""
    if path.is_dir():
        return "folder"
    if not path.is_file():
        return "absent"
    if path.suffix == ".safetensors":
        return "safetensors"
    return "pickle" if path.suffix in PICKLES else "other"


def is_hub_id(path: str) -> bool:
    """Return whether a path is none on this disk and reads like owner/name."""
    return _HUB_ID.fullmatch(path) is not None and not Path(path).exists()


def located(path: str) -> Path:
    """Return where a base lies; a hub id is fetched into the hub's own cache the first time.

    Raises:
        BaseError: If a hub id is not in the cache and cannot be fetched.
    """
    return _fetched(path) if is_hub_id(path) else Path(path)


def fingerprint(place: Path, *, cache_dir: Path | None) -> str:
    """Return 16 hex digits that change with any weight or config in a folder, or with a file."""
    if place.is_file():
        return hashing.files_fingerprint([place], cache_dir=cache_dir)
    return hashing.folder_fingerprint(place, cache_dir=cache_dir)


@functools.cache
def _fetched(repo_id: str) -> Path:
    import huggingface_hub  # here: it is slow to import, and most bases are on the disk
    from huggingface_hub.errors import LocalEntryNotFoundError

    settings: dict[str, Any] = {"allow_patterns": list(_WANTED), "ignore_patterns": list(_UNWANTED)}
    try:
        return Path(huggingface_hub.snapshot_download(repo_id, local_files_only=True, **settings))
    except LocalEntryNotFoundError:
        pass
    try:
        return Path(huggingface_hub.snapshot_download(repo_id, **settings))
    # Everything between a wrong name and a network that is down; the sentence is the same.
    except (OSError, ValueError, RuntimeError) as error:
        first_line = str(error).partition("\n")[0]
        raise BaseError(
            Problem(
                "base.path",
                (
                    f"{repo_id}, which is no file or folder under {Path.cwd()} and was not to be "
                    f"had from the hub ({type(error).__name__}: {first_line})"
                ),
                "a folder, a .safetensors file, or the id of a model on the hub",
                (
                    f"where there is a network, run `hf download {repo_id}` once; or write "
                    "base.path=FILE, relative to here or absolute"
                ),
            )
        ) from error
