"""What a run computes with: its base, loaded once per process, and its network, on the device."""

from __future__ import annotations

import functools
from pathlib import Path

import torch

from optbench.bases import load_base
from optbench.contracts import Base
from optbench.errors import ConfigError
from optbench.loss_checks import check_loss_for_prediction
from optbench.network import LoraNetwork
from optbench.options import BaseOptions, RunConfig

_DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def base_for(config: RunConfig, device: torch.device) -> Base:
    """Return the base, computing as this run asks; its weights are shared with other runs."""
    cache_dir = Path(config.cache_dir)
    base = _base(config.base, device, config.train.mixed_precision, cache_dir)
    if wrong := check_loss_for_prediction(config.loss, base.prediction_type):
        raise ConfigError(*wrong)
    base.compute_with(
        gradient_checkpointing=config.train.gradient_checkpointing,
        attention=config.train.attention,
        compiled_by=config.train.dynamo_backend if config.train.torch_compile else None,
    )
    return base.with_zero_terminal_snr() if config.loss.zero_terminal_snr else base


@functools.lru_cache(maxsize=1)
def _base(options: BaseOptions, device: torch.device, precision: str, cache_dir: Path) -> Base:
    """Return the base, loaded once per process and shared by its runs."""
    return load_base(options, device=device, dtype=_DTYPES[precision], cache_dir=cache_dir)


def network_to_device(network: LoraNetwork, device: torch.device) -> None:
    """Move the network's parameters in place, before an optimizer sees them."""
    for group in network.parameter_groups():
        for parameter in group.parameters:
            parameter.data = parameter.data.to(device)
