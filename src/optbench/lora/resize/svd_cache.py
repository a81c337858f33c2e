"""Cache every layer's SVD, made once for all settings that one command resizes a source to.

Decomposing is nearly all of the work, and it depends on the source alone. The cache is on disk,
because that of a large file is more than twice its size, and is read back bit for bit, so a file
is the same whether its sweep had one setting or ten.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from optbench.lora.svd import Decomposition, Factors, decompose
from optbench.storage.disk import read_bytes
from optbench.storage.files import write_atomic

_SCHEMA = 2  # raise it when equal factors begin to give another decomposition
_NUM_NAME_DIGITS = 32
_NUM_DIGEST_BYTES = 32  # every file opens with the SHA-256 of the rest; a corrupt one is made again


@dataclass(frozen=True, slots=True)
class SvdCache:
    """The decomposed layers of one source (or one merge).

    `folder` belongs to exactly one source's bytes and weights; None caches nothing.
    """

    folder: Path | None = None

    def decompose(self, name: str, factors: Factors) -> Decomposition:
        """Return a layer's decomposition, cached from the first call on."""
        if self.folder is None:
            return decompose(factors)
        path = self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:_NUM_NAME_DIGITS]}"
        # Read whole and not mapped: a mapped file would count as this process's memory.
        with contextlib.suppress(OSError, SafetensorError, KeyError):
            content = read_bytes(path)
            if hashlib.sha256(content[_NUM_DIGEST_BYTES:]).digest() == content[:_NUM_DIGEST_BYTES]:
                tensors = safetensors.torch.load(content[_NUM_DIGEST_BYTES:])
                return Decomposition(
                    factors=factors,
                    singular_values=tuple(tensors["singular_values"].tolist()),
                    left=(tensors["left"], tensors["left_factors"]),
                    right=(tensors["right"], tensors["right_factors"]),
                    core_left=tensors["core_left"],
                    core_right=tensors["core_right"],
                )
        svd = decompose(factors)
        tensors = {
            "singular_values": torch.tensor(svd.singular_values, dtype=svd.core_left.dtype),
            "left": svd.left[0].contiguous(),
            "left_factors": svd.left[1],
            "right": svd.right[0].contiguous(),
            "right_factors": svd.right[1],
            "core_left": svd.core_left.contiguous(),
            "core_right": svd.core_right.contiguous(),
        }
        with contextlib.suppress(OSError):  # a full disk costs the time, not the file
            content = safetensors.torch.save(tensors)
            sealed = hashlib.sha256(content).digest() + content
            write_atomic(path, sealed, durable=False)  # it can be made again
        return svd

    def clear(self) -> None:
        """Remove every cached layer."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def svd_cache_folder(cache_dir: Path, source_fingerprint: str, weights: object) -> Path:
    """Return the folder for one source or merge; another one for other bytes or another torch."""
    content = repr((_SCHEMA, source_fingerprint, weights, torch.__version__))
    name = hashlib.sha256(content.encode()).hexdigest()[:_NUM_NAME_DIGITS]
    return cache_dir / "decompositions" / name
