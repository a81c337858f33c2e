"""One LoRA layer: two small weights beside a layer of the base, and what they add to its output.

A layer W computes W(x) + scale * up(down(x)) with scale = alpha / dim. Shapes and initial values
are kohya's; the random draws are ours, each with an address of its own.

With DoRA (Liu et al., DoRA: Weight-Decomposed Low-Rank Adaptation, arXiv:2402.09353) the layer's
weights become m * V / ||V|| with V = W + scale * up @ down and the norm of each column, which is
each input's: m is learnt too, and starts as ||W||. As in the paper's section 4.3 no gradient goes
through ||V||. A1111 and ComfyUI read such files so; diffusers leaves their m out.

Shapes: B samples, R dim, I inputs, O outputs, K inputs times kernel height and width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, cast, final

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear
from torch.utils.hooks import RemovableHandle

from optbench import rng
from optbench.records import LoraTarget, Part
from optbench.schema import NetworkOptions


@final
class LoraLayer:
    """One layer's pair of small weights, float32 on the layer's own device.

    Linear: down (R, I), up (O, R). Convolution: down is a convolution to R channels with the
    layer's own kernel, stride and padding, up a 1x1 convolution. As in kohya's trainer an alpha
    of 0 stands for alpha = dim.
    """

    def __init__(
        self,
        target: LoraTarget,
        *,
        dim: int,
        alpha: float,
        seed: int,
        lr_weight: float = 1.0,
        dora: bool = False,
    ) -> None:
        """Draw the down weight from U(-1/sqrt(K), 1/sqrt(K)) and set the up weight to zero."""
        module = supported(target.module)
        self.name: str = target.name
        self.part: Part = target.part
        self.lr_weight: float = lr_weight  # what multiplies its part's rate
        self.target_module: nn.Linear | nn.Conv2d = module
        self.alpha: float = alpha if alpha != 0 else float(dim)
        self.scale: float = self.alpha / dim
        self.factor: float = self.scale  # the scale including what this step's dropout asks for
        self.step_seed: int | None = None  # set while activations are dropped
        self.is_dropped: bool = False  # set while the whole branch is dropped
        self.options: NetworkOptions | None = None
        outputs, *inputs = module.weight.shape
        down = torch.empty(dim, *inputs)
        generator = rng.generator(seed, "network-init", target.name)
        nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
        up = torch.zeros(outputs, dim, *(1 for _ in inputs[1:]))
        device = module.weight.device
        self.down: nn.Parameter = nn.Parameter(down.to(device))
        self.up: nn.Parameter = nn.Parameter(up.to(device))
        self.magnitude: nn.Parameter | None = None  # (1, I), or (1, I, 1, 1) of a convolution
        if dora:
            self.magnitude = nn.Parameter(self._lengths())

    def parameters(self) -> tuple[nn.Parameter, ...]:
        """Return what is trained, in the order of the file's keys."""
        pair = (self.down, self.up)
        return pair if self.magnitude is None else (*pair, self.magnitude)

    def attach(self) -> Iterator[RemovableHandle]:
        """Add this pair to the layer's output; each handle's `remove` ends that.

        The pair is added to every row of a batch. A packed pass, with several LoRAs on one base,
        would attach each of them to rows of its own: here, and in `_rescale` and `_masked`.
        """
        is_linear = isinstance(self.target_module, nn.Linear)
        if self.magnitude is not None:
            yield self.target_module.register_forward_pre_hook(self._rescale)
        added = self._add_to_linear if is_linear else self._add_to_convolution
        yield self.target_module.register_forward_hook(added)

    def _add_to_linear(self, _: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor | None:
        if self.is_dropped:
            return None
        hidden = linear(inputs[0], self.down)
        if self.step_seed is not None:
            hidden = self._masked(hidden, rank_axis=-1)
        # The factor meets the small activation: cheaper than scaling the output.
        return output + linear(hidden * self.factor, self.up)

    def _add_to_convolution(
        self, module: nn.Module, inputs: tuple[Tensor], output: Tensor
    ) -> Tensor | None:
        if self.is_dropped:
            return None
        conv = cast(nn.Conv2d, module)
        hidden = conv2d(inputs[0], self.down, None, conv.stride, conv.padding, conv.dilation)
        if self.step_seed is not None:
            hidden = self._masked(hidden, rank_axis=1)
        return output + conv2d(hidden * self.factor, self.up)

    def _rescale(self, _: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        """Return the layer's input times m / ||V||, as if its weights' columns were so scaled."""
        if self.is_dropped or self.magnitude is None:
            return None
        ratio = self.magnitude / self._lengths()
        if isinstance(self.target_module, nn.Linear):
            ratio = ratio.flatten()
        return (inputs[0] * ratio.to(inputs[0].dtype),)

    def _lengths(self) -> Tensor:
        """Return the length of every input's weights with the pair added, (1, I, ...), float32."""
        with torch.no_grad(), torch.autocast(self.down.device.type, enabled=False):
            return lengths(self.target_module.weight.float() + self._product())

    def begin_step(self, step_seed: int, options: NetworkOptions) -> None:
        """Decide this step's dropout from its seed and the layer's name alone."""
        draw = rng.key(step_seed, "dropout", self.name, "module") / 2**63
        self.is_dropped = draw < options.module_dropout
        if options.dropout > 0 or options.rank_dropout > 0:
            self.step_seed, self.options = step_seed, options
            # Masks only cut; the rescaling joins the scale, which costs nothing and never rounds
            # in half precision. Module dropout is not rescaled (kohya).
            self.factor = self.scale / ((1 - options.dropout) * (1 - options.rank_dropout))

    def end_step(self) -> None:
        """Switch all dropout off."""
        self.is_dropped, self.step_seed, self.factor = False, None, self.scale

    def _masked(self, hidden: Tensor, *, rank_axis: int) -> Tensor:
        """Return the activation with dropped elements and dropped rank channels set to zero.

        Generators are made anew at each call: asked again for the same step (a recomputed
        activation, an optimizer that evaluates its loss twice), the masks are the same.
        """
        assert self.step_seed is not None
        assert self.options is not None
        if self.options.dropout > 0:
            generator = rng.generator(self.step_seed, "dropout", self.name, "element")
            mask = torch.rand(hidden.shape, generator=generator) >= self.options.dropout
            hidden = hidden * mask.to(hidden.device)
        if self.options.rank_dropout > 0:
            generator = rng.generator(self.step_seed, "dropout", self.name, "rank")
            shape = [1] * hidden.ndim
            shape[0], shape[rank_axis] = hidden.shape[0], hidden.shape[rank_axis]
            mask = torch.rand(shape, generator=generator) >= self.options.rank_dropout
            hidden = hidden * mask.to(hidden.device)
        return hidden

    def delta(self) -> Tensor:
        """Return what the layer's own weight changes by, in its shape, float32.

        scale * up @ down; with DoRA the difference of m * V / ||V|| and W.
        """
        if self.magnitude is None:
            return self._product()
        weight = self.target_module.weight.float()
        ratio = self.magnitude.detach() / self._lengths()
        return ratio * (weight + self._product()) - weight

    def _product(self) -> Tensor:
        product_OK = self.up.detach().flatten(1) @ self.down.detach().flatten(1)
        return (product_OK * self.scale).view(self.target_module.weight.shape)

    def squared_norm(self) -> Tensor:
        """Return ||scale * up @ down||_F^2 = scale^2 * sum((up^T up) * (down down^T)).

        The two small Gram matrices stand for the product, which is never formed. Of DoRA it is
        the square of the whole change.
        """
        if self.magnitude is not None:
            return self.delta().square().sum()
        down_RK = self.down.detach().flatten(1)
        up_OR = self.up.detach().flatten(1)
        total = ((up_OR.T @ up_OR) * (down_RK @ down_RK.T)).sum()
        return total.clamp(min=0) * self.scale**2  # rounding may leave a tiny negative number

    def tensors(self) -> dict[str, Tensor]:
        """Return the layer's tensors under kohya's keys; the weights are the live ones."""
        return {
            f"{self.name}.lora_down.weight": self.down,
            f"{self.name}.lora_up.weight": self.up,
            f"{self.name}.alpha": torch.tensor(self.alpha),
            **({} if self.magnitude is None else {f"{self.name}.dora_scale": self.magnitude}),
        }


def lengths(weight: Tensor, *, by: Literal["input", "output"] = "input") -> Tensor:
    """Return the length of each input's weights, (1, I, ...), or of each output's, (O, 1, ...).

    Never 0, so that weights which are all 0 stay so when they are divided by their length.
    """
    axis = 1 if by == "input" else 0
    norms: Tensor = weight.transpose(0, axis).flatten(1).norm(dim=1)
    shape = [1] * weight.ndim
    shape[axis] = -1
    return norms.clamp_min(torch.finfo(norms.dtype).tiny).view(shape)


def supported(module: nn.Module) -> nn.Linear | nn.Conv2d:
    """Return a layer that has a LoRA form: linear, or convolution without groups."""
    assert isinstance(module, nn.Linear | nn.Conv2d), f"no LoRA form for {type(module).__name__}"
    if isinstance(module, nn.Conv2d):
        assert module.groups == 1, "a grouped convolution has no LoRA form"
        assert module.padding_mode == "zeros", "only zero padding has a LoRA form"
    return module
