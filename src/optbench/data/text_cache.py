"""Keep what text encoders that nobody trains make of captions.

A caption is encoded alone, never beside its batch, because the last bits depend on the company;
so it makes no difference to a training whether it was in the cache, nor from which run.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from optbench.contracts import BaseModel, Conditioning, TextOptions
from optbench.schema import Attention

# Of a base's device: some 400 captions of SDXL, or 1700 of SD1.5. Shuffled ones come and go.
_MAX_BYTES = 256 * 2**20


class TextCache:
    """The encoded captions of one base, the longest unused ones first to go.

    Whatever else changes the encoding is part of a caption's key or of the base: precision is the
    base's own, since bases are loaded for one.
    """

    def __init__(self, base: BaseModel) -> None:
        """Encode with `base`, as it was loaded."""
        self._base = base
        self._entries: OrderedDict[tuple[str, TextOptions, Attention], dict[str, Tensor]] = (
            OrderedDict()
        )
        self._num_bytes = 0

    def encode(
        self, captions: Sequence[str], text_options: TextOptions, *, attention: Attention
    ) -> Conditioning:
        """Return what `BaseModel.encode_captions` does, each tensor (B, ...), without gradients.

        `attention` is the kind of code that the base attends with: it changes the last bits.
        """
        entries = []
        for caption in captions:
            key = (caption, text_options, attention)
            entry = self._entries.get(key)
            if entry is None:
                with torch.no_grad():
                    entry = dict(self._base.encode_captions([caption], text_options))
                self._entries[key] = entry
                self._num_bytes += _num_bytes(caption, entry)
                while self._num_bytes > _MAX_BYTES and len(self._entries) > 1:
                    (unused, _, _), oldest = self._entries.popitem(last=False)
                    self._num_bytes -= _num_bytes(unused, oldest)
            else:
                self._entries.move_to_end(key)
            entries.append(entry)
        return self._base.stack(entries)


def _num_bytes(caption: str, entry: dict[str, Tensor]) -> int:
    return len(caption) + sum(tensor.nbytes for tensor in entry.values())
