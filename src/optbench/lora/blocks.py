"""Where in the unet a layer sits, counted as kohya's trainer does, and what its block weighs there.

SD1.x and SD2: 12 down blocks, one in the middle, 12 up. SDXL: 9, 3 and 9. Blocks without layers of
their own count too, so that a list means the same for every base of a family.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from optbench.errors import Problem
from optbench.records import LoraTarget
from optbench.schema import NetworkOptions

Place = Literal["down", "mid", "up"]
Weights = tuple[float, ...] | float | str | None  # as options.NetworkOptions has them

_DIFFUSERS = re.compile(
    r"lora_unet_(down|up)_blocks_(\d+)_(attentions|resnets|downsamplers|upsamplers)_(\d+)"
)
_ORIGINAL = re.compile(r"lora_unet_(input|middle|output)_blocks?_(\d+)_")
_PLACES: Mapping[str, Place] = {"input": "down", "middle": "mid", "output": "up"}
_LAYERS_PER_BLOCK = 3
_SAMPLER = 2  # the last of a block's three
_NUM_BLOCKS: Mapping[Place, int] = {"down": 12, "mid": 1, "up": 12}
_NUM_BLOCKS_SDXL: Mapping[Place, int] = {"down": 9, "mid": 3, "up": 9}

_SHAPES: Mapping[str, Callable[[float], float]] = {
    "sine": lambda share: math.sin(math.pi / 2 * share),
    # The sine backwards, as kohya has it: it ends at 0, where the cosine ends at a rounding error.
    "cosine": lambda share: math.sin(math.pi / 2 * (1 - share)),
    "linear": lambda share: share,
    "reverse_linear": lambda share: 1 - share,
    "zeros": lambda share: 0.0,
}
_NAMED = re.compile(rf"({'|'.join(_SHAPES)})(\+[0-9.]+)?")


@dataclass(frozen=True, slots=True)
class Block:
    """One block of the unet: its place, and its number there from 0."""

    place: Place
    number: int


def block_of(name: str) -> Block | None:
    """Return the block a layer belongs to, from its kohya name; None for a text encoder's layer."""
    if match := _ORIGINAL.match(name):
        return Block(_PLACES[match[1]], int(match[2]))
    if match := _DIFFUSERS.match(name):
        layer = _SAMPLER if "samplers" in match[3] else int(match[4])
        # The first of the down blocks is the unet's own first convolution.
        first = 1 if match[1] == "down" else 0
        place: Place = "down" if match[1] == "down" else "up"
        return Block(place, first + _LAYERS_PER_BLOCK * int(match[2]) + layer)
    return Block("mid", 0) if name.startswith("lora_unet_mid_block_") else None


def index_of(name: str) -> int | None:
    """Return where kohya's lists for all blocks have a layer's, or None where they have none.

    SD1.x and SD2: 25 places, 12 down, the middle, 12 up. SDXL: 23, the first for the embeddings of
    time and size, then 9 down, 3 in the middle, 9 up, and the last for the unet's way out.
    """
    block = block_of(name)
    if block is None:
        return None
    is_sdxl = _ORIGINAL.match(name) is not None
    sizes = _NUM_BLOCKS_SDXL if is_sdxl else _NUM_BLOCKS
    first = {"down": 0, "mid": sizes["down"], "up": sizes["down"] + sizes["mid"]}
    return first[block.place] + block.number + int(is_sdxl)


def lr_weights(targets: Sequence[LoraTarget], options: NetworkOptions) -> dict[str, float]:
    """Return what multiplies the rate of every layer, by its name; 0 leaves the layer out."""
    names = [target.name for target in targets]
    sizes = _NUM_BLOCKS_SDXL if any(map(_ORIGINAL.match, names)) else _NUM_BLOCKS
    listed = {
        place: _numbers(given, sizes[place], options.block_lr_zero_threshold)
        for place, given in _given(options).items()
    }
    blocks = {name: block_of(name) for name in names}
    return {
        name: 1.0 if block is None else listed[block.place][block.number]
        for name, block in blocks.items()
    }


def check_effect(options: NetworkOptions, layers: Sequence[float]) -> Problem | None:
    """Return a problem if weights other than 1 are given and no trained layer gets one."""
    listed = {one for given in _given(options).values() for one in _numbers(given, 2)}
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


def check_block_sizes(options: NetworkOptions, *, family: str) -> list[Problem]:
    """Return everything impossible or without effect in the sizes of the unet's blocks."""
    num_blocks = 23 if family == "sdxl" else 25
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
                Problem(
                    f"network.{alphas_name}",
                    f"network.{alphas_name} without network.{dims_name}",
                    "the dims with them, because alone they have no effect",
                    f"add network.{dims_name}, or leave it out",
                )
            )
        if dims is not None and not options.train_unet:
            problems.append(
                Problem(
                    f"network.{dims_name}",
                    "dims for the unet's blocks while network.train_unet=false",
                    "none",
                    "leave it out, or write network.train_unet=true",
                )
            )
    return problems


def check_block_weights(options: NetworkOptions, *, family: str) -> list[Problem]:
    """Return everything impossible or without effect in the weights of the unet's blocks."""
    sizes = _NUM_BLOCKS_SDXL if family == "sdxl" else _NUM_BLOCKS
    given = _given(options)
    has_weights = any(weights is not None for weights in given.values())
    problems = [
        problem
        for place, weights in given.items()
        for problem in _check_one(place, weights, sizes[place])
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
            Problem(
                "network.block_lr_zero_threshold",
                f"{threshold:g} without block weights",
                "block weights with it: up to this number they count as 0",
                "leave it at 0, or add 'network.up_lr_weight=cosine'",
            )
        )
    return problems


def distinct_weights(options: NetworkOptions, *, family: str) -> set[float]:
    """Return the weights above 0 that the unet's blocks are asked to have, 1 where none is."""
    sizes = _NUM_BLOCKS_SDXL if family == "sdxl" else _NUM_BLOCKS
    numbers = (
        _numbers(given, sizes[place], options.block_lr_zero_threshold)
        for place, given in _given(options).items()
    )
    return {weight for one in numbers for weight in one if weight > 0}


def spelled_blocks(options: NetworkOptions) -> dict[str, str]:
    """Return what is given by block as kohya's network_args spell it: down_lr_weight=0,1."""
    spelled = {
        f"{place}_lr_weight": ",".join(f"{one:g}" for one in given)
        if isinstance(given, tuple)
        else str(given)
        for place, given in _given(options).items()
        if given is not None
    }
    for name in ("block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas"):
        listed = getattr(options, name)
        if listed is not None:
            spelled[name] = ",".join(f"{one:g}" for one in listed)
    if options.block_lr_zero_threshold:
        spelled["block_lr_zero_threshold"] = f"{options.block_lr_zero_threshold:g}"
    return spelled


def _given(options: NetworkOptions) -> dict[Place, Weights]:
    return {
        "down": options.down_lr_weight,
        "mid": options.mid_lr_weight,
        "up": options.up_lr_weight,
    }


def _numbers(given: Weights, num_blocks: int, threshold: float = 0.0) -> tuple[float, ...]:
    """Return a weight per block: those listed, one for all, or a named shape of kohya's."""
    numbers: tuple[float, ...]
    if isinstance(given, tuple):
        numbers = given
    elif isinstance(given, str):
        match = _NAMED.fullmatch(given)
        assert match, f"{given} was checked"
        shares = [index / max(1, num_blocks - 1) for index in range(num_blocks)]
        numbers = tuple(_SHAPES[match[1]](share) + float(match[2] or 0) for share in shares)
    else:
        numbers = (1.0 if given is None else given,) * num_blocks
    return tuple(number if number > threshold else 0.0 for number in numbers)


def _check_one(place: Place, given: Weights, num_blocks: int) -> list[Problem]:
    where = f"network.{place}_lr_weight"
    if isinstance(given, str) and not _NAMED.fullmatch(given):
        return [
            Problem(
                where,
                repr(given),
                f"{', '.join(_SHAPES)}, with +0.25 to add that to all, or a list",
                f"write {where}=cosine, or '{where}=[{','.join(['1'] * num_blocks)}]'",
            )
        ]
    numbers = _numbers(given, num_blocks)
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
    is_pointwise = getattr(target.module, "kernel_size", (1, 1)) == (1, 1)  # linear ones have none
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
