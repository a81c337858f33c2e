"""A LoRA file's layers, of whatever dims and alphas, as a network on a base."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from optbench.errors import Problem
from optbench.lora import keys as lora_keys
from optbench.lora.layer import LoraLayer, supported
from optbench.lora.network import LoraNetwork
from optbench.lora.svd import Factors
from optbench.records import LoraTarget
from optbench.schema import NetworkOptions

_PLAIN = NetworkOptions(
    name="file",
    dim=1,  # of no layer: each has its own
    alpha=1.0,
    conv_dim=None,
    conv_alpha=None,
    dropout=0.0,
    rank_dropout=0.0,
    module_dropout=0.0,
    scale_weight_norms=None,
    train_unet=True,
    train_text_encoder=True,
    down_lr_weight=None,
    mid_lr_weight=None,
    up_lr_weight=None,
    block_lr_zero_threshold=0.0,
    block_dims=None,
    block_alphas=None,
    conv_block_dims=None,
    conv_block_alphas=None,
    rslora=False,
    dora=False,
    weights=None,
    dim_from_weights=False,
)
Shapes = tuple[tuple[int, ...], tuple[int, ...]]  # of up and of down


def misfits(
    targets: Sequence[LoraTarget], shapes: Mapping[str, Shapes], *, base: str, where: str
) -> list[Problem]:
    """Return a problem if any layer has no place in the base, or one of another size."""
    found = {target.name: tuple(supported(target.module).weight.shape) for target in targets}
    strange = [name for name in shapes if name not in found]
    unlike = [
        f"{name} for {(up[0], *down[1:])} in a layer of {found[name]}"
        for name, (up, down) in shapes.items()
        if name in found and (up[0], *down[1:]) != found[name]
    ]
    return lora_keys.misfits(
        strange,
        unlike,
        len(shapes),
        base=base,
        where=where,
        fix="give the base it was trained on, for instance base=sd15 base.path=FOLDER, or "
        "render=off validate=off",
    )


def network_of(targets: Sequence[LoraTarget], layers: Iterable[tuple[str, Factors]]) -> LoraNetwork:
    """Return a network that holds these layers, each at its own dim and alpha.

    Layers are taken one by one, so that a large file is never in memory twice. Each must have its
    place: call `misfits` first.
    """
    places = {target.name: number for number, target in enumerate(targets)}
    built: dict[int, LoraLayer] = {}
    for name, factors in layers:
        number = places[name]
        layer = LoraLayer(targets[number], dim=factors.dim, alpha=factors.alpha, seed=0)
        # An alpha of 0 means dim where a LoRA is trained, and in a file, as A1111 reads it, 0.
        layer.alpha, layer.scale, layer.factor = factors.alpha, factors.scale, factors.scale
        with torch.no_grad():
            layer.down.copy_(factors.down)
            layer.up.copy_(factors.up)
        built[number] = layer
    return LoraNetwork([built[number] for number in sorted(built)], _PLAIN)
