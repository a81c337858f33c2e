"""Facts of a base model's files without loading it: fingerprints, hashes, tensor shapes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from optbench.errors import BaseError, Problem
from optbench.models.files import locate
from optbench.schema import BaseOptions
from optbench.storage import hashing
from optbench.storage.disk import open_regular, read_text
from optbench.storage.safetensors_header import read_header

_PIXELS_PER_LATENT = 8  # of every family's own autoencoder, four levels deep


def base_fingerprint(options: BaseOptions, *, cache_dir: Path) -> str:
    """Return hex that changes with any weight or config file of the base or its own autoencoder."""
    parts = [locate.fingerprint(locate.located(options.path), cache_dir=cache_dir)]
    if options.vae is not None:
        parts.append(locate.fingerprint(Path(options.vae), cache_dir=cache_dir))
    return "+".join(parts)


def kohya_hashes(options: BaseOptions, *, cache_dir: Path) -> dict[str, str]:
    """Return the names and hashes of the base's files as kohya's trainer writes them.

    A file has two hashes: SHA-256 of the 64 KiB behind the first MiB, eight digits of it (what
    A1111 showed first), and SHA-256 of the whole. A folder has a name and no hash.
    """
    entries = {"ss_sd_model_name": options.path}
    if not locate.is_hub_id(options.path):
        path = Path(options.path)
        entries["ss_sd_model_name"] = path.name
        if path.is_file():
            entries["ss_sd_model_hash"] = _older_hash(path)
            entries["ss_new_sd_model_hash"] = hashing.file_sha256(path, cache_dir=cache_dir)
    if options.vae is not None:
        vae = Path(options.vae)
        entries["ss_vae_name"] = vae.name
        if vae.is_file():
            entries["ss_vae_hash"] = _older_hash(vae)
            entries["ss_new_vae_hash"] = hashing.file_sha256(vae, cache_dir=cache_dir)
    return entries


def pixels_per_latent(options: BaseOptions) -> int:
    """Return how many pixels one latent is wide, from the autoencoder's config alone.

    Raises:
        BaseError: If that config is missing or is none of an autoencoder.
    """
    vae = locate.located(options.path) if options.vae is None else Path(options.vae)
    if vae.is_file():
        return _PIXELS_PER_LATENT
    file = (vae / "vae" if options.vae is None else vae) / "config.json"
    try:
        num_levels = len(json.loads(read_text(file))["block_out_channels"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BaseError(
            Problem(
                str(file),
                f"{type(error).__name__}: {error}",
                "the config of an AutoencoderKL, with block_out_channels",
                "point base.path at a whole model",
            )
        ) from error
    return int(2 ** (num_levels - 1))


def tensor_shapes(options: BaseOptions) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name and shape of every tensor; in folders with the part's name before it.

    Nothing comes of what cannot be read: the base's own reader says what is wrong with it.
    """
    place = locate.located(options.path)
    files = [(place, "")] if place.is_file() else []
    for file in sorted(place.glob("*/*.safetensors")) if not files else []:
        # Another one repeats it in another precision, or before averaging.
        plain = file.with_name(f"{file.name.partition('.')[0]}.safetensors")
        if file == plain or not plain.is_file():
            files.append((file, f"{file.parent.name}."))
    for file, prefix in files:
        try:
            shapes = read_header(file).shapes
        except (OSError, ValueError):
            continue
        for name, shape in shapes.items():
            yield prefix + name, shape


def _older_hash(path: Path) -> str:
    with open_regular(path) as file:
        file.seek(hashing.KOHYA_HASH_RANGE.start)
        content = file.read(hashing.KOHYA_HASH_RANGE.stop - hashing.KOHYA_HASH_RANGE.start)
    return hashing.kohya_hash(content)
