"""Decide which layers carry a LoRA, of what dim and alpha, and at what share of the rate.

Dims, alphas and rates may differ by block of the unet, as in kohya's trainer. Nothing here imports
torch, so that a plan counts the same layers as the network.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from optbench.errors import Problem, without_effect
from optbench.records import LoraSite, LoraTarget, UnetBlocks, UnetSide
from optbench.schema import NetworkOptions

Weights = tuple[float, ...] | float | str | None  # as schema.NetworkOptions has them

_SHAPES: Mapping[str, Callable[[float], float]] = {
    "sine": lambda share: math.sin(math.pi / 2 * share),
    # The sine backwards, as kohya has it: it ends at 0, where the cosine ends at a rounding error.
    "cosine": lambda share: math.sin(math.pi / 2 * (1 - share)),
    "linear": lambda share: share,
    "reverse_linear": lambda share: 1 - share,
    "zeros": lambda share: 0.0,
}
_NAMED = re.compile(rf"({'|'.join(_SHAPES)})(\+[0-9.]+)?")


_Site = TypeVar("_Site", LoraSite, LoraTarget)


@dataclass(frozen=True, slots=True, kw_only=True)
class SizedSite(Generic[_Site]):
    """A layer that gets a LoRA, unless `lr_weight` is 0."""

    site: _Site
    dim: int
    alpha: float  # as its file says it
    lr_weight: float  # what multiplies the rate of its part


def sized_sites(
    sites: Iterable[_Site],
    options: NetworkOptions,
    *,
    sizes: Mapping[str, tuple[int, float]] | None = None,
) -> list[SizedSite[_Site]]:
    """Return the layers that these settings give a size, in the order of `sites`.

    Args:
        sites: Every layer of the base model that may carry a LoRA.
        options: Which of them do, and of what size.
        sizes: Instead of the options' sizes, dim and alpha of exactly the layers to train.
    """
    listed: dict[tuple[UnetSide, int], tuple[float, ...]] = {}
    sized = []
    for site in sites:
        size = layer_size(site, options) if sizes is None else sizes.get(site.name)
        if size is None:
            continue
        weight = 1.0
        if block := site.block:
            count = block.blocks.at(block.side)
            if (block.side, count) not in listed:
                weights = _weights_by_side(options)[block.side]
                threshold = options.block_lr_zero_threshold
                listed[block.side, count] = block_numbers(weights, count, threshold)
            weight = listed[block.side, count][block.number]
        sized.append(SizedSite(site=site, dim=size[0], alpha=size[1], lr_weight=weight))
    return sized


def num_saved_numbers(layers: Iterable[SizedSite[_Site]], *, dora: bool) -> int:
    """Return how many numbers a file of these layers holds: downs, ups, alphas, DoRA's lengths."""
    total = 0
    for layer in layers:
        if layer.lr_weight > 0:
            outputs, inputs, *kernel = layer.site.shape
            total += layer.dim * (outputs + inputs * math.prod(kernel)) + 1
            total += inputs if dora else 0
    return total


def check_effect(options: NetworkOptions, layers: Sequence[float]) -> Problem | None:
    """Return a problem if weights other than 1 are given and no trained layer gets one."""
    listed = {
        number
        for weights in _weights_by_side(options).values()
        for number in block_numbers(weights, 2)
    }
    if listed <= {1.0} or set(layers) != {1.0}:
        return None
    return Problem(
        "network.down_lr_weight, network.mid_lr_weight and network.up_lr_weight",
        "weights for blocks in which this network has no layer",
        "at least one layer whose rate they change",
        (
            "leave them out, choose other blocks, or add network.conv_dim=8: most blocks without "
            "attention have layers only then"
        ),
    )


def check_block_sizes(options: NetworkOptions, blocks: UnetBlocks) -> list[Problem]:
    """Return everything impossible or without effect in the sizes of the unet's blocks."""
    num_blocks = blocks.num_listed
    problems = []
    for dims_name, alphas_name in (
        ("block_dims", "block_alphas"),
        ("conv_block_dims", "conv_block_alphas"),
    ):
        dims, alphas = getattr(options, dims_name), getattr(options, alphas_name)
        for name, given in ((dims_name, dims), (alphas_name, alphas)):
            if given is not None and len(given) != num_blocks:
                kind = "dims" if name == dims_name else "alphas"
                problems.append(
                    Problem(
                        f"network.{name}",
                        f"{len(given)} numbers: {list(given)}",
                        f"{num_blocks} {kind}, one for each block of this family",
                        (
                            f"write 'network.{name}=[{','.join(['4'] * num_blocks)}]' and change "
                            "what you want"
                        ),
                    )
                )
        if alphas is not None and dims is None:
            problems.append(
                without_effect(
                    f"network.{alphas_name}",
                    list(alphas),
                    f"network.{dims_name} is null",
                    f"network.{dims_name}",
                )
            )
        if dims is not None and not options.train_unet:
            problems.append(
                without_effect(
                    f"network.{dims_name}",
                    list(dims),
                    "network.train_unet is false",
                    "network.train_unet=true",
                )
            )
    return problems


def check_block_weights(options: NetworkOptions, blocks: UnetBlocks) -> list[Problem]:
    """Return everything impossible or without effect in the weights of the unet's blocks."""
    by_side = _weights_by_side(options)
    has_weights = any(weights is not None for weights in by_side.values())
    problems = [
        problem
        for side, weights in by_side.items()
        for problem in _check_weights(side, weights, blocks.at(side))
    ]
    if has_weights and not options.train_unet:
        problems.append(
            Problem(
                "network.down_lr_weight, network.mid_lr_weight and network.up_lr_weight",
                "block weights while network.train_unet=false",
                "none, because they are for the unet's blocks",
                "leave them out, or write network.train_unet=true",
            )
        )
    threshold = options.block_lr_zero_threshold
    if threshold and not has_weights:
        problems.append(
            without_effect(
                "network.block_lr_zero_threshold",
                threshold,
                "no block has a weight",
                "network.up_lr_weight=cosine",
            )
        )
    return problems


def distinct_weights(options: NetworkOptions, blocks: UnetBlocks) -> set[float]:
    """Return the weights above 0 that the settings give the unet's blocks, 1 where none is."""
    return {
        weight
        for side, weights in _weights_by_side(options).items()
        for weight in block_numbers(weights, blocks.at(side), options.block_lr_zero_threshold)
        if weight > 0
    }


def spelled_blocks(options: NetworkOptions) -> dict[str, str]:
    """Return what is given by block as kohya's network_args spell it: down_lr_weight=0,1."""
    spelled = {
        f"{side}_lr_weight": ",".join(f"{weight:g}" for weight in weights)
        if isinstance(weights, tuple)
        else str(weights)
        for side, weights in _weights_by_side(options).items()
        if weights is not None
    }
    for name in ("block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas"):
        listed = getattr(options, name)
        if listed is not None:
            spelled[name] = ",".join(f"{number:g}" for number in listed)
    if options.block_lr_zero_threshold:
        spelled["block_lr_zero_threshold"] = f"{options.block_lr_zero_threshold:g}"
    return spelled


def network_notices(options: NetworkOptions) -> tuple[str, ...]:
    """Return in sentences what these settings do here and not in kohya's trainer."""
    notices = []
    by_block = [options.block_dims, *_weights_by_side(options).values()]
    if options.conv_block_dims is not None and all(value is None for value in by_block):
        notices.append(
            "network.conv_block_dims alone gives 3x3 layers a LoRA here; kohya's trainer passes it "
            "over unless block_dims or weights of blocks are given too"
        )
    dropouts = (options.dropout, options.rank_dropout, options.module_dropout)
    if options.dim_from_weights and any(dropouts):
        notices.append(
            "dropout acts here beside network.dim_from_weights; kohya's trainer drops nothing in a "
            "network whose sizes come from weights"
        )
    return tuple(notices)


def _weights_by_side(options: NetworkOptions) -> dict[UnetSide, Weights]:
    return {
        "down": options.down_lr_weight,
        "mid": options.mid_lr_weight,
        "up": options.up_lr_weight,
    }


def block_numbers(weights: Weights, num_blocks: int, threshold: float = 0.0) -> tuple[float, ...]:
    """Return a weight per block: those listed, one for all, or a named shape of kohya's.

    Weights up to `threshold` are 0.
    """
    numbers: tuple[float, ...]
    if isinstance(weights, tuple):
        numbers = weights
    elif isinstance(weights, str):
        match = _NAMED.fullmatch(weights)
        assert match, f"{weights} was checked"
        shares = [index / max(1, num_blocks - 1) for index in range(num_blocks)]
        numbers = tuple(_SHAPES[match[1]](share) + float(match[2] or 0) for share in shares)
    else:
        numbers = (1.0 if weights is None else weights,) * num_blocks
    return tuple(number if number > threshold else 0.0 for number in numbers)


def _check_weights(side: UnetSide, weights: Weights, num_blocks: int) -> list[Problem]:
    where = f"network.{side}_lr_weight"
    if isinstance(weights, str) and not _NAMED.fullmatch(weights):
        return [
            Problem(
                where,
                repr(weights),
                f"{', '.join(_SHAPES)}, with +0.25 to add that to all, or a list",
                f"write {where}=cosine, or '{where}=[{','.join(['1'] * num_blocks)}]'",
            )
        ]
    numbers = block_numbers(weights, num_blocks)
    if len(numbers) != num_blocks:
        return [
            Problem(
                where,
                f"{len(numbers)} weights: {list(numbers)}",
                (
                    f"{num_blocks}, one for each block of this family, those without layers "
                    "too; none is added or cut off for you"
                ),
                f"write '{where}=[{','.join(['1'] * num_blocks)}]' and change what you want",
            )
        ]
    return []


def layer_size(site: LoraSite | LoraTarget, options: NetworkOptions) -> tuple[int, float] | None:
    """Return a layer's dim and alpha as its file says them, or None where it gets no LoRA.

    With `rslora` the alpha is multiplied by sqrt(dim), so that alpha / dim, which every reader of
    such files computes, is rsLoRA's alpha / sqrt(dim) (Kalajdzievski, A Rank Stabilization Scaling
    Factor for Fine-Tuning with LoRA, arXiv:2312.03732).
    """
    if not (options.train_unet if site.part == "unet" else options.train_text_encoder):
        return None
    has_conv = options.conv_dim is not None or options.conv_block_dims is not None
    is_pointwise = math.prod(site.shape[2:]) == 1
    if not has_conv and (site.needs_conv_dim or not is_pointwise):
        return None
    # Inside resnets, linear and 1x1 layers come with the convolutions but have the size of the
    # others (kohya).
    if is_pointwise:
        dim, alpha = options.dim, options.alpha
        dims, alphas = options.block_dims, options.block_alphas
    else:
        # A conv_alpha that is not given is 1 beside conv_block_dims (kohya); else it is refused.
        dim = options.conv_dim or 0
        alpha = 1.0 if options.conv_alpha is None else options.conv_alpha
        dims, alphas = options.conv_block_dims, options.conv_block_alphas
    if site.block is not None and dims is not None:
        dim = dims[site.block.index]
        alpha = alpha if alphas is None else alphas[site.block.index]
    if dim == 0:
        return None
    return (dim, alpha * math.sqrt(dim)) if options.rslora else (dim, alpha)
