"""What text encoders that nobody trains say of captions: asked once, and then remembered.

A caption is encoded alone, never beside its batch, because the last bits depend on the company;
so it makes no difference to a training whether it was remembered, nor from which run.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from optbench.contracts import BaseModel, Conditioning
from optbench.schema import TrainOptions

# Of a base's device: some 400 captions of SDXL, or 1700 of SD1.5. Shuffled ones come and go.
_MAX_BYTES = 256 * 2**20


@dataclass(slots=True)
class _Memory:
    """The captions of one base, the longest unused ones first."""

    entries: OrderedDict[tuple[object, ...], dict[str, Tensor]] = field(default_factory=OrderedDict)
    num_bytes: int = 0

    def keep(self, key: tuple[object, ...], entry: dict[str, Tensor]) -> None:
        self.entries[key] = entry
        self.num_bytes += _num_bytes(entry)
        while self.num_bytes > _MAX_BYTES and len(self.entries) > 1:
            self.num_bytes -= _num_bytes(self.entries.popitem(last=False)[1])


_OF_BASES: WeakKeyDictionary[BaseModel, _Memory] = WeakKeyDictionary()


def encode_frozen(base: BaseModel, captions: Sequence[str], options: TrainOptions) -> Conditioning:
    """Return what `BaseModel.encode_captions` does, without gradients, for encoders as they are.

    Whatever else changes an answer is part of a caption's key or of the base: precision is the
    base's own, since bases are loaded for one.
    """
    memory = _OF_BASES.setdefault(base, _Memory())
    text_options = base.text_options(asdict(options))
    how = (text_options, options.attention, options.mixed_precision)
    found = []
    for caption in captions:
        key = (caption, *how)
        entry = memory.entries.get(key)
        if entry is None:
            with torch.no_grad():
                encoded = base.encode_captions([caption], text_options)
            entry = dict(encoded)
            memory.keep(key, entry)
        else:
            memory.entries.move_to_end(key)
        found.append(entry)
    return base.stack(found)


def _num_bytes(entry: dict[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in entry.values())
