"""Measure the validation losses that a run's folder lacks, from its LoRA files.

From the files, as images are rendered (docs/decisions/0001): so they are of what a person will
load, can be measured again at any time, and cannot touch a training.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optbench.contracts import BaseModel, Network, TextOptions
from optbench.data import read_dataset
from optbench.data.batches import sizes_of
from optbench.data.beside import check_apart, read_beside
from optbench.data.latent_cache import encode_dataset
from optbench.errors import DamagedFileError, DatasetError
from optbench.lora.network import as_in_file
from optbench.models.text.tokens import CLEANING_VERSION, is_repaired
from optbench.records import CaptionedImage, Dataset
from optbench.schema import DatasetOptions, ValidateOptions
from optbench.storage import files, hashing
from optbench.storage.files import Row
from optbench.storage.rundir import RunDir, epochs_named
from optbench.training.paired_loss import Split, ValidationSample, choose_images, paired_losses
from optbench.training.plan import RunPlan

if TYPE_CHECKING:
    from optbench.training.lane import RunLane

_SCHEMA = 1  # raise it when equal settings begin to give other losses
_SPLITS: tuple[Split, ...] = ("training", "held_out", "ood", "others")
_FOLDER_KEYS: Mapping[Split, str] = {
    "held_out": "validate.dir",
    "ood": "validate.ood_dir",
    "others": "validate.others_dir",
}
Place = tuple[str, int]  # image and timestep


@dataclass(frozen=True, slots=True, kw_only=True)
class Validator:
    """Everything besides the network that decides a validation loss, and where rows go."""

    run: RunDir
    base: BaseModel
    samples: tuple[ValidationSample, ...]
    options: ValidateOptions
    text_options: TextOptions
    cache_dir: Path

    @property
    def key(self) -> str:
        """Hex that changes with anything but the network that a loss depends on."""
        content = {
            "schema": _SCHEMA,
            "base": self.base.fingerprint,
            "vae": self.base.vae_fingerprint,
            "device": self.base.device.type,
            "dtype": str(self.base.dtype),
            "pictures": [
                (sample.image_key, sample.split, sample.caption) for sample in self.samples
            ],
            "sizes": [list(sample.latents_CHW.shape) for sample in self.samples],
            "timesteps": list(self.options.timesteps),
            **self.text_options.settings(),
        }
        if any(is_repaired(sample.caption) for sample in self.samples):
            content["cleaning"] = CLEANING_VERSION
        return hashing.fingerprint(content)


def validator_for(plan: RunPlan, base: BaseModel) -> Validator | None:
    """Return what a run's validation losses are measured by; None where they are switched off.

    Raises:
        DatasetError: As `read_samples`.
    """
    config = plan.config
    if not config.validate.enabled:
        return None
    cache_dir = Path(config.cache_dir)
    return Validator(
        run=RunDir(plan.run_dir),
        base=base,
        samples=read_samples(
            config.validate,
            config.dataset,
            base,
            dataset=plan.dataset,
            held_out=() if plan.held_out is None else plan.held_out.images,
            cache_dir=cache_dir,
        ),
        options=config.validate,
        text_options=base.text_options(dataclasses.asdict(config.train)),
        cache_dir=cache_dir,
    )


def read_samples(
    options: ValidateOptions,
    data: DatasetOptions,
    base: BaseModel,
    *,
    dataset: Dataset | None = None,
    held_out: Sequence[CaptionedImage] = (),
    cache_dir: Path,
) -> tuple[ValidationSample, ...]:
    """Return the images to measure on, of every kind that there are images of.

    Args:
        options: The folders beside the data set, and how many of each kind.
        data: How images are sized and captioned.
        base: Encodes them.
        dataset: What is trained on; None: read by `data`.
        held_out: Images of the data set that are not trained on.
        cache_dir: Where latents lie.

    Raises:
        DatasetError: If images cannot be read, or ones from beside are among those trained on.
    """
    trained = dataset or read_dataset(data, pixels_per_latent=base.pixels_per_latent)
    by_split: dict[Split, Sequence[CaptionedImage]] = {
        "training": [image for image in trained.images if not image.is_regularization],
        "held_out": held_out,
        "others": trained.class_images,
    }
    folders: Mapping[Split, str | None] = {
        "held_out": options.dir,
        "ood": options.ood_dir,
        "others": options.others_dir,
    }
    for split, folder in folders.items():
        if folder is not None:
            by_split[split] = read_beside(
                folder, _FOLDER_KEYS[split], data, pixels_per_latent=base.pixels_per_latent
            ).images
    by_setting = {setting: by_split.get(split, ()) for split, setting in _FOLDER_KEYS.items()}
    if problems := check_apart(by_setting, trained.images):
        raise DatasetError(*problems)
    return tuple(
        sample
        for split in _SPLITS
        for sample in _samples(by_split.get(split, ()), split, options, base, cache_dir)
    )


def epochs_due(
    options: ValidateOptions, num_epochs: int, *, is_last: bool, until_epoch: int | None = None
) -> list[int]:
    """Return which of so many trained epochs are to be measured, in order.

    The last of a run always is, and so is the one until which it is trained for now.
    """
    every = options.every_n_epochs
    epochs = {epoch for epoch in range(1, num_epochs + 1) if every and epoch % every == 0}
    epochs |= {num_epochs} if is_last else set()
    epochs |= {until_epoch} if until_epoch is not None and until_epoch <= num_epochs else set()
    return sorted(epochs)


def validate_due(lane: RunLane, *, epochs: Sequence[int]) -> int:
    """Measure those of a lane's trained epochs that are due and have no validation loss yet.

    An epoch whose LoRA file somebody deleted is left as it is, and named.

    Returns:
        How many epochs were measured.
    """
    if lane.validator is None:
        return 0
    due = epochs_due(
        lane.validator.options,
        lane.finished.epoch,
        is_last=lane.finished.step == lane.plan.total_steps,
        until_epoch=lane.plan.until_epoch,
    )
    missing = [epoch for epoch in due if epoch in epochs and needs_measuring(lane.validator, epoch)]
    gone = [epoch for epoch in missing if not lane.run.lora_path(epoch).is_file()]
    if gone:
        lane.progress.say(f"{epochs_named(gone)} not validated: the LoRA file is gone")
    return validate_missing(
        lane.validator, lane.network, [epoch for epoch in missing if epoch not in gone]
    )


def validate_missing(validator: Validator, network: Network, epochs: Sequence[int]) -> int:
    """Measure these epochs from their LoRA files, where they have no losses yet.

    `network` sits nowhere, and has its own weights back afterwards, bit for bit. Returns how many
    epochs were measured.
    """
    num_measured = 0
    for epoch in epochs:
        if needs_measuring(validator, epoch):
            measure_base(validator)
            path = validator.run.lora_path(epoch)
            with as_in_file(network, path), network.merged():
                measure(validator, epoch=epoch)
            num_measured += 1
    return num_measured


def needs_measuring(validator: Validator, epoch: int) -> bool:
    """Return whether an epoch's losses are not there; those measured otherwise are removed."""
    run, key_path = validator.run, validator.run.validation_key_path
    try:
        is_same = key_path.is_file() and files.read_json(key_path)["key"] == validator.key
    except (DamagedFileError, KeyError):
        is_same = False
    if not is_same:
        run.validation_path.unlink(missing_ok=True)
        files.write_json(key_path, {"key": validator.key})
    rows = files.read_rows(run.validation_path)
    num_there: int = sum(row["epoch"] == epoch for row in rows)
    if 0 < num_there < len(validator.samples) * len(validator.options.timesteps):
        # A process that is killed, or a disk that is full, may end amid an epoch's lines.
        files.write_rows(run.validation_path, [row for row in rows if row["epoch"] != epoch])
        return True
    return num_there == 0


def measure(
    validator: Validator, *, epoch: int, originals: Mapping[Place, float] | None = None
) -> dict[Place, float]:
    """Append the losses of what the base answers now to the run's records, and return them.

    Every row also has the base's own loss at the same place, and the original's where given.
    """
    alone = base_losses(validator)
    losses = _measured(validator)
    rows: list[Row] = []
    for sample in validator.samples:
        for timestep in validator.options.timesteps:
            place = sample.image_key, timestep
            row: Row = {
                "epoch": epoch,
                "image": sample.image_key,
                "split": sample.split,
                "timestep": timestep,
                "loss": losses[place],
                "base_loss": alone.get(place),
            }
            rows.append(row if originals is None else {**row, "original_loss": originals[place]})
    files.append_rows(validator.run.validation_path, rows)
    return losses


def measure_base(validator: Validator) -> None:
    """Measure the base alone, once for all runs; call it while no network sits in the base."""
    path = _base_path(validator)
    try:
        base_losses(validator)
    except (DamagedFileError, KeyError, TypeError, ValueError):
        if path.is_file():
            files.set_aside(path)
        losses = [[*place, loss] for place, loss in _measured(validator).items()]
        files.write_json(path, {"losses": losses})


def base_losses(validator: Validator) -> dict[Place, float]:
    """Return the losses of the base alone, measured by `measure_base`."""
    content = files.read_json(_base_path(validator))
    return {(str(image), int(timestep)): loss for image, timestep, loss in content["losses"]}


def summary(rows: Iterable[Mapping[str, Any]], *, epoch: int) -> dict[str, float]:
    """Return an epoch's mean losses for its record; nothing where it has none.

    `validation_loss/training` is over images that are trained on, `/held_out` over ones that are
    not, `/ood` over the subject in other outfits and places, `/others` over other subjects.
    `_base` and `_original` are the base's and the original's means over the same places.
    """
    of_epoch = [row for row in rows if row["epoch"] == epoch]
    means: dict[str, float] = {}
    for split in _SPLITS:
        chosen = [row for row in of_epoch if row["split"] == split]
        for name, key in (("", "loss"), ("_base", "base_loss"), ("_original", "original_loss")):
            values = [row[key] for row in chosen if row.get(key) is not None]
            if values:
                means[f"validation_loss{name}/{split}"] = statistics.fmean(values)
    return means


def _measured(validator: Validator) -> dict[Place, float]:
    losses = paired_losses(
        validator.base,
        validator.samples,
        timesteps=validator.options.timesteps,
        text_options=validator.text_options,
    )
    return {(paired.image_key, paired.timestep): paired.loss for paired in losses}


def _base_path(validator: Validator) -> Path:
    return validator.cache_dir / "base-losses" / f"{validator.key}.json"


def _samples(
    images: Sequence[CaptionedImage],
    split: Split,
    options: ValidateOptions,
    base: BaseModel,
    cache_dir: Path,
) -> Iterable[ValidationSample]:
    chosen = choose_images(images, options.num_pictures)
    part = Dataset(images=tuple(chosen), fingerprint="")
    latents = encode_dataset(part, base, cache_dir=cache_dir, flips=False).latents_CHW
    return [
        ValidationSample(
            image_key=image.key,
            split=split,
            caption=image.caption.split("\n")[0],  # its other lines are alternatives
            sizes=sizes_of(image, flipped=False),
            latents_CHW=latents[image.key, False],
        )
        for image in chosen
    ]
