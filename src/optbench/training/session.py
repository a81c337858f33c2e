"""What the runs of one process share: the loaded base, its encoded captions, and the latents.

One session lives as long as the process makes runs. It keeps one base and one data set, those of
the last run; a run with another base or data set takes their place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optbench.training.plan import RunPlan

if TYPE_CHECKING:
    from accelerate import Accelerator

    from optbench.contracts import BaseModel
    from optbench.data.latent_cache import FreshLatents, LatentCache
    from optbench.data.text_cache import TextCache


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What all lanes of a training pass share."""

    accelerator: Accelerator
    base: BaseModel
    captions: TextCache
    latents: LatentCache | FreshLatents


class Session:
    """Loads what a run needs, unless the run before it needed the same."""

    def __init__(self, load_base: Callable[..., BaseModel] | None = None) -> None:
        """Load bases with `load_base` instead of `models.load_base`, where given."""
        self._load_base = load_base
        self._base_key: tuple[Any, ...] | None = None
        self._base: BaseModel | None = None
        self._captions: TextCache | None = None
        self._latents_key: tuple[Any, ...] | None = None
        self._latents: LatentCache | None = None

    def open(self, plan: RunPlan) -> Shared:
        """Return device, base, captions and latents of a run.

        Raises:
            ConfigError: If this machine lacks the device, or the loss does not suit the base.
            BaseError: If the base cannot be loaded, or its autoencoder gives NaN or infinity.
            DatasetError: If images changed or vanished since the run was planned.
        """
        # Not at the top: a command whose runs are all finished must not wait for torch.
        from optbench.training.device import make_accelerator

        config, train = plan.config, plan.config.train
        accelerator = make_accelerator(train)
        loaded, captions = self._base_for(plan, accelerator)
        base = loaded.for_training(config.loss)
        base.compute_with(
            gradient_checkpointing=train.gradient_checkpointing,
            attention=train.attention,
            compiled_by=train.dynamo_backend if train.torch_compile else None,
        )
        latents = self._latents_for(plan, loaded)
        return Shared(accelerator=accelerator, base=base, captions=captions, latents=latents)

    def _base_for(self, plan: RunPlan, accelerator: Accelerator) -> tuple[BaseModel, TextCache]:
        from optbench.data.text_cache import TextCache
        from optbench.models import load_base
        from optbench.models.device import dtype_of

        config, cache_dir = plan.config, Path(plan.config.cache_dir)
        precision = config.train.mixed_precision
        # The files under one path may be others by now.
        files = plan.base_fingerprint
        key = (config.base, files, str(accelerator.device), precision, cache_dir)
        if self._base is None or self._captions is None or self._base_key != key:
            # Let go first: two bases at a time may not fit into the memory.
            self._base = self._captions = self._latents = None
            load = self._load_base or load_base
            self._base = load(
                config.base,
                device=accelerator.device,
                dtype=dtype_of(precision),
                cache_dir=cache_dir,
            )
            self._base_key, self._captions = key, TextCache(self._base)
        return self._base, self._captions

    def _latents_for(self, plan: RunPlan, base: BaseModel) -> LatentCache | FreshLatents:
        from optbench.data.latent_cache import LatentCache, latents_of

        config = plan.config
        key = (plan.dataset, config.dataset)
        if self._latents is not None and self._latents_key == key:
            return self._latents
        latents = latents_of(
            plan.dataset,
            base,
            config.dataset,
            seed=config.seed,
            cache_dir=Path(config.cache_dir),
        )
        if isinstance(latents, LatentCache):
            # The next run with them has no news of entries that this one repaired.
            self._latents, self._latents_key = replace(latents, notices=()), key
        return latents
