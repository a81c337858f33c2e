"""Compute what one adapter layer's tensors change the base's weight by.

With W the weight, s = alpha / dim and DoRA's lengths m, as ComfyUI, A1111 and LyCORIS read files:

- LoRA: s up @ down. LoCon with a core C: the convolution C between the two.
- LoHa (FedPara, arXiv:2108.06098): s (w1_a @ w1_b) * (w2_a @ w2_b), element by element.
- LoKr (KronA, arXiv:2212.10650): s w1 (x) w2, the Kronecker product; either may be a product of
  two, and where neither is there is no dim and s is 1.
- DoRA (arXiv:2402.09353) of any of them: m V / ||V|| - W with V = W + what is above.

Shapes: R dim, O outputs, I inputs, K inputs times kernel height and width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from optbench.lora.adapters.formats import AdapterLayer
from optbench.lora.layer import lengths


def change(layer: AdapterLayer, parts: Mapping[str, Tensor], weight: Tensor) -> Tensor:
    """Return what a layer's weight changes by at strength 1, in its shape.

    Args:
        layer: Of which form the parts are.
        parts: The layer's tensors by part, in floating point and on the weight's device.
        weight: The base's, float32.
    """
    added = product(layer.form, parts, weight.shape[2:]) * scale_of(layer, parts)
    added = added.view(weight.shape)
    if "lengths" not in parts:
        return added
    moved, learnt = weight + added, parts["lengths"]
    norms = lengths(moved, by=lengths_by(layer, learnt.shape))
    # The order of operations is that of lora.LoraLayer.delta, for the same bits.
    return learnt.view(norms.shape) / norms * moved - weight


def lengths_by(layer: AdapterLayer, shape: Sequence[int]) -> Literal["input", "output"]:
    """Return of what DoRA's lengths are: PEFT has one for each output, LyCORIS either."""
    is_output = layer.is_peft or (len(shape) > 1 and shape[0] > 1)
    return "output" if is_output else "input"


def scale_of(layer: AdapterLayer, parts: Mapping[str, Tensor]) -> float:
    """Return what the product is multiplied by: alpha / dim, and 1 where one of them is absent."""
    if layer.scale is not None:
        return layer.scale
    of_dim = {"LoRA": ("down",), "LoHa": ("w1_b",), "LoKr": ("w1_b", "w2_b")}[layer.form]
    dims = [len(parts[part]) for part in of_dim if part in parts]
    return float(parts["alpha"]) / dims[0] if "alpha" in parts and dims else 1.0


def product(form: str, parts: Mapping[str, Tensor], kernel: Sequence[int] = ()) -> Tensor:
    """Return what is added to a weight before scale and lengths, (O, K).

    Args:
        form: LoRA, LoHa or LoKr.
        parts: The layer's tensors by part; of the meta device, where only the shape is wanted.
        kernel: The layer's own, for factors of LoKr that are stored flat.
    """
    if form == "LoRA":
        up, down = parts["up"], parts["down"].flatten(1)
        if "core" not in parts:
            return up.flatten(1) @ down
        core = parts["core"]
        return torch.einsum("or,rskl,si->oikl", up.flatten(1), core, down).flatten(1)
    if form == "LoHa":
        return (_pair(parts, "w1", "t1") * _pair(parts, "w2", "t2")).flatten(1)
    first, second = (
        parts[which] if which in parts else _pair(parts, which, f"t{which[1]}")
        for which in ("w1", "w2")
    )
    if kernel and second.ndim == first.ndim:
        second = second.reshape(len(second), -1, *kernel)
    first = first.view(*first.shape, *(1 for _ in second.shape[2:]))
    return torch.kron(first, second.contiguous()).flatten(1)  # kron cannot read a transposed one


def _pair(parts: Mapping[str, Tensor], which: str, core: str) -> Tensor:
    """Return one factor that is itself a product, of two or with a core between them."""
    left, right = parts[f"{which}_a"], parts[f"{which}_b"]
    if core not in parts:
        return left @ right
    return torch.einsum("rskl,ro,si->oikl", parts[core], left, right)
