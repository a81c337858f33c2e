"""The keys of a LoRA file: which layers they make up, and why a file may not be a plain LoRA.

Read are the files of kohya's trainer for SD1.x, SD2 and SDXL: linear layers and convolutions of
any kernel, with or without alphas. Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from optbench.errors import Problem, shorten
from optbench.storage.resources import command_line

_MAX_DIGITS = 9
DOWN, UP, ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"
# Part of a key -> the form of adapter it belongs to; none of them is a plain product up @ down.
OTHER_FORMS: Final = {
    ".dora_scale": "DoRA",
    ".hada_": "LoHa",
    ".lokr_": "LoKr",
    ".lora_mid.": "LoCon with a Tucker core",
    ".oft_": "OFT",
    ".on_input": "(IA)^3",
    ".a1.weight": "GLoRA",
    ".diff": "full weight differences",
    ".lora_A.": "LoRA in PEFT's or diffusers' key names",
    ".lora.down.": "LoRA in diffusers' older key names",
}


# OneTrainer and A1111's extensions put textual-inversion embeddings beside the layers.
EMBEDDING = "bundle_emb."


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleShape:
    """One LoRA layer as the header of its file describes it."""

    name: str
    up: tuple[int, ...]  # (O, R) or (O, R, 1, 1)
    down: tuple[int, ...]  # (R, I) or (R, I, kernel, kernel)
    has_alpha: bool

    @property
    def dim(self) -> int:
        """The layer's dim."""
        return self.down[0]

    @property
    def is_conv(self) -> bool:
        """Whether the layer is a convolution, of any kernel."""
        return len(self.down) > 2


def plain(shape: Sequence[int]) -> tuple[int, ...]:
    """Return a weight's shape, a 1x1 convolution's as that of the linear layer which it is."""
    return tuple(shape[:2]) if len(shape) == 4 and tuple(shape[2:]) == (1, 1) else tuple(shape)


def keys_of(name: str) -> tuple[str, str, str]:
    """Return the keys of one layer: its alpha, down and up."""
    return name + ALPHA, name + DOWN, name + UP


def modules_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, ModuleShape]:
    """Return the layers of a file without refusals, by name, in the order of its keys."""
    names = [key.removesuffix(DOWN) for key in shapes if key.endswith(DOWN)]
    return {
        name: ModuleShape(
            name=name,
            up=shapes[name + UP],
            down=shapes[name + DOWN],
            has_alpha=name + ALPHA in shapes,
        )
        for name in names
    }


def refusals_of(shapes: Mapping[str, tuple[int, ...]], *, where: str) -> list[Problem]:
    """Return everything that keeps a file from being read as plain LoRA layers.

    Args:
        shapes: Every key of the file and the shape of its tensor.
        where: The file, for the reader.
    """
    foreign: list[tuple[str, list[str]]] = [
        (f"{form}, a form of adapter that is not one product up @ down,", keys)
        for mark, form in OTHER_FORMS.items()
        if (keys := [key for key in shapes if mark in key])
    ]
    if foreign:
        return [_refusal(what, keys, len(shapes), where) for what, keys in foreign]
    downs = {key.removesuffix(DOWN) for key in shapes if key.endswith(DOWN)}
    ups = {key.removesuffix(UP) for key in shapes if key.endswith(UP)}
    alphas = {key.removesuffix(ALPHA) for key in shapes if key.endswith(ALPHA)}
    if not downs | ups:
        return [_refusal("no LoRA layer at all", sorted(shapes), len(shapes), where)]
    whole = downs & ups
    unlike = [
        f"{name} {shapes[name + DOWN]} and {shapes[name + UP]}"
        for name in sorted(whole)
        if not _fit(shapes[name + DOWN], shapes[name + UP])
    ]
    complaints = {
        "a lora_down without its lora_up": sorted(downs - ups),
        "a lora_up without its lora_down": sorted(ups - downs),
        "an alpha without its layer": sorted(alphas - whole - (downs ^ ups)),
        "down and up weights that do not fit together": unlike,
        "an alpha of more than one number": sorted(
            name for name in alphas if math.prod(shapes[name + ALPHA]) != 1
        ),
    }
    return [_refusal(what, keys, len(shapes), where) for what, keys in complaints.items() if keys]


def misfits(
    strange: Sequence[str], unlike: Sequence[str], num_all: int, *, base: str, where: str, fix: str
) -> list[Problem]:
    """Return a problem if layers of a file have no place in a base, or one of another size."""
    misfitting = []
    if strange:
        misfitting.append(f"no place for {count_and_names(strange, num_all, 'layers')}")
    if unlike:
        misfitting.append(f"other sizes of {count_and_names(unlike, num_all, 'layers')}")
    if not misfitting:
        return []
    return [Problem(where, "; ".join(misfitting), f"a LoRA of base {base}", fix)]


def clip_skip_of(metadata: Mapping[str, str]) -> int:
    """Return the clip skip that a file says it was trained with; 1 where it says nothing."""
    clip_skip = metadata.get("ss_clip_skip", "")
    # Of more digits than any model has layers, nobody wants the number.
    is_number = clip_skip.isdecimal() and len(clip_skip) <= _MAX_DIGITS
    return max(1, int(clip_skip)) if is_number else 1


def embedding_notices(keys: Iterable[str], *, where: str) -> tuple[str, ...]:
    """Return a sentence on the embeddings that a file brings along, which are left out."""
    names = {
        key.removeprefix(EMBEDDING).split(".")[0]: None for key in keys if key.startswith(EMBEDDING)
    }
    if not names:
        return ()
    return (
        f"{where}: the embedding {shorten(list(names))} in it is left out; its words are read as "
        "any others",
    )


def count_and_names(names: Sequence[str], num_all: int, what: str = "tensors") -> str:
    """Return how many tensors or layers, and the first few names."""
    return f"{len(names)} of {num_all} {what}: {shorten(names)}"


def _fit(down: tuple[int, ...], up: tuple[int, ...]) -> bool:
    """Return whether two shapes are those of a linear layer or of a convolution, and not empty."""
    if len(down) not in (2, 4) or len(up) != len(down) or 0 in (*down, *up):
        return False
    return up[1] == down[0] and all(size == 1 for size in up[2:])


def _refusal(what: str, keys: Sequence[str], num_all: int, where: str) -> Problem:
    return Problem(
        where,
        f"{what} in {count_and_names(keys, num_all)}",
        (
            "LoRA layers as kohya's trainer writes them: NAME.lora_down.weight with "
            "NAME.lora_up.weight, and NAME.alpha or none"
        ),
        f"give a LoRA or LoCon file; other kinds can be rendered: {command_line('render', 'FILE')}",
    )
