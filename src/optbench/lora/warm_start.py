"""A network that begins where a LoRA file ends (`network.weights`).

Unlike kohya's trainer, which loads such a file loosely, every layer of the network comes from the
file and every layer of the file's trained parts goes into the network, or nothing is trained.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from optbench.errors import ConfigError, DamagedFileError, Problem
from optbench.lora import keys as lora_keys
from optbench.lora.file import read_lora
from optbench.lora.initial_weights import LayerSize, StartingLora, is_rounded
from optbench.lora.keys import ALPHA, DOWN, UP
from optbench.lora.network import LoraNetwork, build_network
from optbench.records import LoraTarget
from optbench.schema import NetworkOptions


def begin_network(
    targets: Sequence[LoraTarget],
    options: NetworkOptions,
    *,
    seed: int,
    start: StartingLora | None,
) -> LoraNetwork:
    """Return the network to train: fresh, or with the weights of the file it continues from.

    16-bit and 8-bit weights become float32, exactly. An alpha is the settings' own, of which a
    16-bit file holds a rounded one; with `dim_from_weights` it is the file's.

    Raises:
        ConfigError: If the options leave no layer to train, or if network and file do not have
            the same layers of the same shapes; names what differs.
        DamagedFileError: If the file can no longer be read.
    """
    if start is None:
        return build_network(targets, options, seed=seed)
    wanted = start.of_parts(options)
    offered = {target.name for target in targets}
    if problems := _differences((), [name for name in wanted if name not in offered], start):
        raise ConfigError(*problems)
    sizes = None
    if options.dim_from_weights:
        sizes = {name: (size.dim, size.alpha) for name, size in wanted.items()}
    network = build_network(targets, options, seed=seed, sizes=sizes)
    tensors = read_lora(start.path)[0]
    if any(name + DOWN not in tensors for name in wanted):
        raise DamagedFileError(_changed(start))
    own = network.state_dict()
    names = {key.removesuffix(DOWN) for key in own if key.endswith(DOWN)}
    if problems := _differences(names, wanted, start):
        raise ConfigError(*problems)
    if problem := _other_alphas({name: float(own[name + ALPHA]) for name in names}, wanted):
        raise ConfigError(problem)
    given = {key: tensors[key].float() for key in own if key.endswith((DOWN, UP))}
    alphas = {key: tensor for key, tensor in own.items() if key.endswith(ALPHA)}
    network.load_state_dict({**given, **alphas})
    return network


def _differences(
    names: Collection[str], wanted: Collection[str], start: StartingLora
) -> list[Problem]:
    """Return what the network has and the file has not, and the other way round."""
    absent = sorted(name for name in names if name not in wanted)
    unknown = sorted(name for name in wanted if name not in names)
    problems = []
    if absent:
        problems.append(
            Problem(
                "network.weights",
                (
                    f"no weights in {start.path.name} for "
                    f"{lora_keys.named(absent, len(names), 'layers')}"
                ),
                "weights for every layer of the network",
                "write network.dim_from_weights=true to train exactly the file's layers",
            )
        )
    if unknown:
        problems.append(
            Problem(
                "network.weights",
                (
                    f"layers in {start.path.name} that the network has not: "
                    f"{lora_keys.named(unknown, len(start.layers), 'layers')}"
                ),
                "a place for every layer of the file; what has none would be lost",
                "use the network.* settings and a base of the family it was trained with",
            )
        )
    return problems


def _other_alphas(own: Mapping[str, float], wanted: Mapping[str, LayerSize]) -> Problem | None:
    """Return the problem of layers that would go on at another scale than the file's."""
    unlike = [
        f"{name} {wanted[name].alpha:g} for {alpha:g}"
        for name, alpha in own.items()
        if not is_rounded(alpha, wanted[name])
    ]
    if not unlike:
        return None
    return Problem(
        "network.weights",
        f"other alphas: {lora_keys.named(unlike, len(own), 'layers')}",
        "the scale at which the weights were trained",
        "give the sizes they were trained with, or write network.dim_from_weights=true",
    )


def _changed(start: StartingLora) -> Problem:
    return Problem(
        str(start.path),
        "other layers than a moment ago",
        "the file that was checked when the command began",
        "give the command again, with a file that nothing else writes to",
    )
