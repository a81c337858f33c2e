"""One epoch's LoRA file: what it says of itself, and the record that it can be proved whole by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from optbench.contracts import BaseModel
from optbench.data.batches import num_batches
from optbench.lora.initial_weights import StartingLora, start_metadata
from optbench.lora.metadata import LoraCard, kohya_metadata
from optbench.lora.save import save_lora
from optbench.models.files.facts import kohya_hashes
from optbench.records import Dataset
from optbench.schema import RunConfig
from optbench.storage.files import append_rows
from optbench.storage.rundir import RunDir


def epoch_card(
    config: RunConfig,
    name: str,
    dataset: Dataset,
    base: BaseModel,
    *,
    reached: tuple[int, int],
    num_steps: int,
) -> LoraCard:
    """Return what the metadata of an epoch's file is made from.

    Args:
        config: The run's settings.
        name: The run's.
        dataset: What it is trained on.
        base: The model that is trained.
        reached: The epoch, and the steps up to its end.
        num_steps: Of the whole run.
    """
    epoch, step = reached
    return LoraCard(
        name=name,
        model_version=base.model_version,
        prediction=base.process.prediction,
        files=kohya_hashes(config.base, cache_dir=Path(config.cache_dir)),
        seed=config.seed,
        lr_mult=config.lr_mult,
        epoch=epoch,
        step=step,
        num_epochs=config.train.epochs,
        num_steps=num_steps,
        num_batches_per_epoch=num_batches(dataset, batch_size=config.train.batch_size),
        images=dataset.images,
        folders=dataset.folders,
        dataset=config.dataset,
        network=config.network,
        optimizer=config.optimizer,
        lr_scheduler=config.lr_scheduler,
        train=config.train,
        loss=config.loss,
    )


def save_epoch(
    run: RunDir, card: LoraCard, tensors: Mapping[str, Tensor], *, start: StartingLora | None
) -> None:
    """Write the epoch's file, the last one of a run under two names, and a record of each.

    Raises:
        DivergedError: If a tensor holds NaN or infinity.
    """
    metadata = {**kohya_metadata(card), **start_metadata(start)}
    paths = [run.lora_path(card.epoch)]
    if card.step == card.num_steps:
        paths.append(run.lora_path(None))
    rows = []
    for path in paths:
        digest = save_lora(path, tensors, precision=card.train.save_precision, metadata=metadata)
        rows.append({"epoch": card.epoch, "file": path.name, "sha256": digest})
    append_rows(run.files_path, rows)
