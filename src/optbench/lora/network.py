"""The LoRA that is trained: its layers on a base, dropout, max-norm, norms, and its tensors.

Max-norm and the names of the tensors are kohya's.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast, final

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from optbench.contracts import Network
from optbench.errors import ConfigError, Problem
from optbench.lora.blocks import check_effect, sized_sites
from optbench.lora.file import read_lora
from optbench.lora.keys import plain
from optbench.lora.layer import LoraLayer
from optbench.records import LoraTarget, ParameterGroup, Part
from optbench.schema import NetworkOptions

_PARTS: tuple[Part, ...] = ("text_encoder", "unet")
_SEED_RANGE = 2**63 - 1
_FILE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def build_network(
    targets: Sequence[LoraTarget],
    options: NetworkOptions,
    *,
    seed: int,
    sizes: Mapping[str, tuple[int, float]] | None = None,
) -> LoraNetwork:
    """Return a network that changes nothing yet: up weights are zero, down weights are drawn.

    A down weight is drawn from a generator keyed by the seed and the target's name, so it is the
    same whatever other layers carry a LoRA. It is drawn at the layer's own dim: two dims have two
    draws, and nothing else depends on them.

    Args:
        targets: Every layer the base offers.
        options: Which of them carry a LoRA, and of what size.
        seed: The run's.
        sizes: Instead of the options' sizes, dim and alpha of exactly the layers to train.

    Raises:
        ConfigError: If the options leave no layer to train, 3x3 layers without an alpha, or block
            weights that reach no layer.
    """
    if options.conv_dim is not None and options.conv_alpha is None:
        raise ConfigError(
            Problem(
                "network.conv_alpha",
                f"network.conv_dim={options.conv_dim} without network.conv_alpha",
                "an alpha, since 3x3 layers are scaled by conv_alpha / conv_dim",
                f"add network.conv_alpha={options.conv_dim / 2:g}",
            )
        )
    sized = sized_sites(targets, options, sizes=sizes)
    layers = [
        LoraLayer(
            layer.site,
            dim=layer.dim,
            alpha=layer.alpha,
            seed=seed,
            lr_weight=layer.lr_weight,
            dora=options.dora,
        )
        for layer in sized
        if layer.lr_weight > 0
    ]
    if not layers:
        raise ConfigError(_nothing_to_train(targets, options))
    if problem := check_effect(options, [layer.lr_weight for layer in sized]):
        raise ConfigError(problem)
    return LoraNetwork(layers, options)


@final
class LoraNetwork:
    """All LoRA layers of one base, in the base's order; implements `contracts.Network`."""

    def __init__(self, layers: Sequence[LoraLayer], options: NetworkOptions) -> None:
        """Take over `layers`; `build_network` is the way to get them."""
        self._layers = tuple(layers)
        self._groups = tuple(_grouped(layers))
        self._options = options
        self._state: Literal["detached", "attached", "merged"] = "detached"
        assert len({layer.name for layer in self._layers}) == len(self._layers)

    def parameter_groups(self) -> tuple[ParameterGroup, ...]:
        """Return the trained parameters by rate: text encoder, unet, then the unet's other blocks.

        Blocks of one weight share a group: a class that estimates one step size for each group
        sees no more groups than there are rates.
        """
        return self._groups

    def to(self, device: torch.device) -> None:
        """Move the parameters in place; call it before an optimizer sees them."""
        for group in self._groups:
            for parameter in group.parameters:
                parameter.data = parameter.data.to(device)

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Context manager: add this LoRA to the base's forward pass.

        The base's layers and weights stay as they are. Run it under autocast if the base is not
        float32: the network's weights are.
        """
        assert self._state == "detached", f"the network is already {self._state}"
        self._state = "attached"
        handles: list[RemovableHandle] = []
        try:
            for layer in self._layers:
                handles += layer.attach()
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._state = "detached"

    @contextlib.contextmanager
    def merged(self) -> Iterator[None]:
        """Context manager: merge this LoRA into the base's weights, for fast rendering.

        The sums are formed in float32 and rounded to the base's dtype. The original weights are
        set aside, not recomputed, and come back bit for bit.
        """
        assert self._state == "detached", f"the network is already {self._state}"
        self._state = "merged"
        originals: list[tuple[Tensor, Tensor]] = []
        try:
            with torch.no_grad(), self._float32():
                for layer in self._layers:
                    weight = layer.target_module.weight
                    summed = weight.float() + layer.delta()
                    originals.append((weight, weight.data))
                    weight.data = torch.empty_like(weight).copy_(summed)
            yield
        finally:
            for weight, original in reversed(originals):
                weight.data = original
            self._state = "detached"

    def begin_step(self, generator: torch.Generator) -> None:
        """Draw this step's dropout from `generator`; without a call nothing is dropped."""
        options = self._options
        if options.dropout == options.rank_dropout == options.module_dropout == 0:
            return
        step_seed = int(torch.randint(_SEED_RANGE, (), generator=generator))
        for layer in self._layers:
            layer.begin_step(step_seed, options)

    def end_step(self) -> Mapping[str, float]:
        """Switch dropout off, then apply max-norm and return its statistics, where it is asked.

        Max-norm as in kohya's trainer: a layer whose norm n = ||scale * up @ down||_F is above the
        limit M gets both weights multiplied by sqrt(M / n); the norm counted is that afterwards.
        """
        for layer in self._layers:
            layer.end_step()
        limit = self._options.scale_weight_norms
        if limit is None:
            return {}
        num_scaled = 0
        norms = []
        for layer, norm in zip(self._layers, self._layer_norms(), strict=True):
            bounded = max(norm, limit / 2)
            ratio = min(bounded, limit) / bounded
            if ratio != 1:
                num_scaled += 1
                with torch.no_grad():
                    layer.down.mul_(math.sqrt(ratio))
                    layer.up.mul_(math.sqrt(ratio))
            norms.append(norm * ratio)
        return {"norm/keys_scaled": float(num_scaled), **_statistics(norms)}

    def norms(self) -> Mapping[str, float]:
        """Return the mean and the largest ||scale * up @ down||_F over all layers."""
        return _statistics(self._layer_norms())

    def layer_norms(self) -> Mapping[str, float]:
        """Return ||scale * up @ down||_F of every layer, by its name."""
        names = (layer.name for layer in self._layers)
        return dict(zip(names, self._layer_norms(), strict=True))

    def broken_layers(self, of: Literal["weights", "gradients"]) -> tuple[str, ...]:
        """Return the layers in whose weights or gradients a number is not finite."""
        names, checks = [], []
        for layer in self._layers:
            for weight in layer.parameters():
                tensor = weight.detach() if of == "weights" else weight.grad
                if tensor is not None:
                    names.append(layer.name)
                    checks.append(tensor.isfinite().all())
        if not checks:
            return ()
        # Stacked first, so that an accelerator is waited for once and not once per tensor.
        are_finite = torch.stack(checks).tolist()
        broken = [name for name, is_fine in zip(names, are_finite, strict=True) if not is_fine]
        return tuple(dict.fromkeys(broken))

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of every tensor of the file under kohya's keys: CPU, float32."""
        return {
            key: tensor.detach().to("cpu", copy=True)
            for layer in self._layers
            for key, tensor in layer.tensors().items()
        }

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Put tensors under kohya's keys back, bit for bit; 16-bit ones are widened exactly.

        Those of a linear layer fit a 1x1 convolution, and the other way round.

        Raises:
            ConfigError: If a key is missing or unknown, or a tensor does not fit this network's
                dim or alpha; everything that is wrong at once, and then nothing is loaded.
        """
        weights = {key: value for layer in self._layers for key, value in layer.tensors().items()}
        problems = _check_tensors(weights, tensors)
        if problems:
            raise ConfigError(*problems)
        with torch.no_grad():
            for key, weight in weights.items():
                weight.copy_(tensors[key].reshape(weight.shape))

    def _layer_norms(self) -> list[float]:
        with torch.no_grad(), self._float32():
            # Stacked first, so that an accelerator is waited for once and not once per layer.
            norms = torch.stack([layer.squared_norm() for layer in self._layers]).sqrt()
        return cast(list[float], norms.tolist())

    def _float32(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context without autocast, so that norms and sums are never rounded to 16 bit."""
        return torch.autocast(self._layers[0].down.device.type, enabled=False)


def _grouped(layers: Sequence[LoraLayer]) -> Iterator[ParameterGroup]:
    """Yield the layers' parameters by part and weight of the rate, the whole rate first."""
    weights = sorted(
        {layer.lr_weight for layer in layers}, key=lambda weight: (weight != 1, weight)
    )
    for part in _PARTS:
        for weight in weights:
            members = [layer for layer in layers if (layer.part, layer.lr_weight) == (part, weight)]
            if members:
                yield ParameterGroup(
                    name=part if weight == 1 else f"{part}_x{weight:g}",
                    part=part,
                    lr_weight=weight,
                    parameters=[tensor for layer in members for tensor in layer.parameters()],
                )


def _nothing_to_train(targets: Sequence[LoraTarget], options: NetworkOptions) -> Problem:
    switches = {"unet": options.train_unet, "text_encoder": options.train_text_encoder}
    shown = ", ".join(f"network.train_{part}={str(on).lower()}" for part, on in switches.items())
    offered = sorted({target.part for target in targets})
    fixes = [f"network.train_{part}=true" for part in offered if not switches[part]]
    if options.conv_dim is None and any(switches[target.part] for target in targets):
        fixes.append(f"network.conv_dim={options.dim} network.conv_alpha={options.alpha:g}")
    return Problem(
        "network",
        f"no layer to train with {shown}, network.conv_dim={options.conv_dim}",
        f"at least one of the {len(targets)} layers the base offers",
        f"set {' or '.join(fixes)}" if fixes else "choose a base that offers LoRA layers",
    )


def _check_tensors(weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[Problem]:
    """Return what keeps `tensors` from being loaded into `weights`, in at most five problems."""
    shared = [key for key in weights if key in tensors]
    unlike = [key for key in shared if plain(tensors[key].shape) != plain(weights[key].shape)]
    wide = [key for key in shared if tensors[key].dtype not in _FILE_DTYPES]
    rescaled = [
        key
        for key in shared
        if key.endswith(".alpha")
        and key not in unlike + wide
        # A 16-bit file holds a rounded alpha, which is still the same setting.
        and tensors[key].cpu() != weights[key].to(tensors[key].dtype)
    ]
    complaints = {
        "missing keys": [key for key in weights if key not in tensors],
        "unknown keys": [key for key in tensors if key not in weights],
        "other shapes": [
            f"{key} {tuple(tensors[key].shape)} for {tuple(weights[key].shape)}" for key in unlike
        ],
        "other dtypes than float32, float16 and bfloat16": [
            f"{key} {tensors[key].dtype}" for key in wide
        ],
        "other alphas": [
            f"{key} {float(tensors[key]):g} for {float(weights[key]):g}" for key in rescaled
        ],
    }
    return [
        Problem(
            "LoRA weights",
            f"{what}: {', '.join(entries)}",
            f"exactly this network's {len(weights)} tensors",
            "use the network.* settings and the base these weights were trained with",
        )
        for what, entries in complaints.items()
        if entries
    ]


def _statistics(norms: Sequence[float]) -> dict[str, float]:
    """Return the mean and the largest norm under kohya's names."""
    return {
        "norm/average_key_norm": sum(norms) / len(norms),
        "norm/max_key_norm": max(norms),
    }


@contextlib.contextmanager
def as_in_file(network: Network, path: Path) -> Iterator[None]:
    """Context manager: load a file's weights into the network, then restore its own, bit for bit.

    Unlike `adapters.apply.applied` it keeps the network's own alphas, of which a 16-bit file
    holds rounded ones.
    """
    tensors, _ = read_lora(path)
    trained = network.state_dict()
    network.load_state_dict(tensors)
    try:
        yield
    finally:
        network.load_state_dict(trained)
