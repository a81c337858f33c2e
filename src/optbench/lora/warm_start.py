"""Build the network to train: fresh, or with the weights of a LoRA file (`network.weights`).

Unlike kohya's trainer, which loads such a file loosely, every layer of the network comes from the
file and every layer of the file's trained parts goes into the network, or nothing is trained.
"""

from __future__ import annotations

from collections.abc import Sequence

from optbench.errors import ConfigError, DamagedFileError, Problem
from optbench.lora.file import SafetensorsFile
from optbench.lora.initial_weights import InitialWeights, fingerprints, is_rounded
from optbench.lora.keys import ALPHA, DOWN, UP, named
from optbench.lora.network import LoraNetwork, build_network
from optbench.records import LoraTarget
from optbench.schema import NetworkOptions


def begin_network(
    targets: Sequence[LoraTarget],
    options: NetworkOptions,
    *,
    seed: int,
    initial: InitialWeights | None,
) -> LoraNetwork:
    """Return the network to train: fresh, or with the weights of the file it continues.

    16-bit and 8-bit weights become float32, exactly. An alpha is the settings' own, of which a
    16-bit file holds a rounded one; with `dim_from_weights` it is the file's.

    Raises:
        ConfigError: If the options leave no layer to train, or if network and file do not have
            the same layers of the same shapes; names what differs.
        DamagedFileError: If the file can no longer be read, or is another one than was judged.
    """
    if initial is None:
        return build_network(targets, options, seed=seed)
    layers = initial.of_parts(options)
    places = {target.name for target in targets}
    if strange := sorted(name for name in layers if name not in places):
        raise ConfigError(_without_place(strange, initial))
    sizes = None
    if options.dim_from_weights:
        sizes = {name: (size.dim, size.alpha) for name, size in layers.items()}
    network = build_network(targets, options, seed=seed, sizes=sizes)
    tensors = network.state_dict()
    alphas = {
        key.removesuffix(ALPHA): float(alpha)
        for key, alpha in tensors.items()
        if key.endswith(ALPHA)
    }
    problems = []
    if absent := sorted(name for name in alphas if name not in layers):
        problems.append(
            Problem(
                "network.weights",
                f"no weights in {initial.path.name} for {named(absent, len(alphas), 'layers')}",
                "weights for every layer of the network",
                "write network.dim_from_weights=true to train exactly the file's layers",
            )
        )
    if strange := sorted(name for name in layers if name not in alphas):
        problems.append(_without_place(strange, initial))
    if not problems:
        rescaled = [
            f"{name} {layers[name].alpha:g} for {alpha:g}"
            for name, alpha in alphas.items()
            if not is_rounded(alpha, layers[name])
        ]
        if rescaled:
            problems.append(
                Problem(
                    "network.weights",
                    f"other alphas: {named(rescaled, len(alphas), 'layers')}",
                    "the scale at which the weights were trained",
                    "give the sizes they were trained with, or write network.dim_from_weights=true",
                )
            )
    if problems:
        raise ConfigError(*problems)
    file = SafetensorsFile(initial.path)
    if fingerprints(file)[1] != initial.fingerprint:
        raise DamagedFileError(
            Problem(
                str(initial.path),
                "other tensors than a moment ago",
                "the file that was checked when the command began",
                "give the command again, with a file that nothing else writes to",
            )
        )
    tensors |= {key: file.tensor(key).float() for key in tensors if key.endswith((DOWN, UP))}
    network.load_state_dict(tensors)
    return network


def _without_place(strange: Sequence[str], initial: InitialWeights) -> Problem:
    return Problem(
        "network.weights",
        (
            f"layers in {initial.path.name} that the network has not: "
            f"{named(strange, len(initial.layers), 'layers')}"
        ),
        "a place for every layer of the file; what has none would be lost",
        "use the network.* settings and a base of the family it was trained with",
    )
