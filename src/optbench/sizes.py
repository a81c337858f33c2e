"""Which dim and alpha each layer gets: by kind of layer, by block, and with rsLoRA's scale."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from optbench.blocks import index_of
from optbench.lora import supported
from optbench.options import NetworkOptions
from optbench.records import LoraTarget


def layer_size(target: LoraTarget, options: NetworkOptions) -> tuple[int, float] | None:
    """Return a layer's dim and alpha as its file says them, or None where it gets no LoRA.

    With `rslora` the alpha is multiplied by sqrt(dim), so that alpha / dim, which every reader of
    such files computes, is rsLoRA's alpha / sqrt(dim) (Kalajdzievski, A Rank Stabilization Scaling
    Factor for Fine-Tuning with LoRA, arXiv:2312.03732).
    """
    size = _asked_size(target, options)
    if size is None or size[0] == 0:
        return None
    dim, alpha = size
    return (dim, alpha * math.sqrt(dim)) if options.rslora else (dim, alpha)


def _asked_size(target: LoraTarget, options: NetworkOptions) -> tuple[int, float] | None:
    if not (options.train_unet if target.part == "unet" else options.train_text_encoder):
        return None
    module = supported(target.module)
    is_pointwise = isinstance(module, nn.Linear) or module.kernel_size == (1, 1)
    has_conv = options.conv_dim is not None or options.conv_block_dims is not None
    if target.needs_conv_dim and not has_conv:
        return None
    index = index_of(target.name)
    # Inside resnets, linear and 1x1 layers come with the convolutions but have the size of the
    # others (kohya).
    if is_pointwise:
        return _in_block(
            index, options.block_dims, options.block_alphas, (options.dim, options.alpha)
        )
    if not has_conv:
        return None
    # A conv_alpha that is not given is 1 beside conv_block_dims (kohya); else it is refused.
    alpha = 1.0 if options.conv_alpha is None else options.conv_alpha
    return _in_block(
        index, options.conv_block_dims, options.conv_block_alphas, (options.conv_dim or 0, alpha)
    )


def _in_block(
    index: int | None,
    dims: Sequence[int] | None,
    alphas: Sequence[float] | None,
    everywhere: tuple[int, float],
) -> tuple[int, float]:
    """Return the size listed for a block, else the one for all layers."""
    if index is None or dims is None:
        return everywhere
    return dims[index], everywhere[1] if alphas is None else alphas[index]
