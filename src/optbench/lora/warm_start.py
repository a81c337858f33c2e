"""Build the network to train: fresh, or with the weights of a LoRA file (`network.weights`).

Unlike kohya's trainer, which loads such a file loosely, every layer of the network comes from the
file and every layer of the file's trained parts goes into the network, or nothing is trained.
"""

from __future__ import annotations

from collections.abc import Sequence

from optbench.errors import ConfigError, DamagedFileError, Problem
from optbench.lora.file import SafetensorsFile
from optbench.lora.initial_weights import InitialWeights, check_sizes_of_layers, fingerprints
from optbench.lora.keys import ALPHA, DOWN, UP
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
    sizes = None
    if options.dim_from_weights:
        layers = initial.of_parts(options)
        sizes = {name: (size.dim, size.alpha) for name, size in layers.items()}
    network = build_network(targets, options, seed=seed, sizes=sizes)
    tensors = network.state_dict()
    built = {
        key.removesuffix(ALPHA): (len(tensors[key.removesuffix(ALPHA) + DOWN]), float(alpha))
        for key, alpha in tensors.items()
        if key.endswith(ALPHA)
    }
    if problems := check_sizes_of_layers(built, options, initial):
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
