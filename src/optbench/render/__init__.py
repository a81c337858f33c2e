"""Rendering: prompts x seeds -> pictures with their cell coordinates."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from PIL.PngImagePlugin import PngInfo

from optbench.contracts import Base, SampleRequest
from optbench.options import Prompt, RenderOptions
from optbench.records import Cell

if TYPE_CHECKING:
    from PIL.Image import Image


def cells_of(prompt: Prompt, options: RenderOptions, *, epoch: int) -> list[Cell]:
    """Return one prompt's cells after one epoch, a cell per seed."""
    return [
        Cell(prompt=prompt.name, width=prompt.width, height=prompt.height, seed=seed, epoch=epoch)
        for seed in options.seeds
    ]


def render_prompts(
    base: Base,
    prompts: Sequence[Prompt],
    options: RenderOptions,
    *,
    epoch: int,
    clip_skip: int,
    is_wanted: Callable[[Cell], bool],
) -> Iterator[tuple[Cell, Prompt, Image]]:
    """Yield every wanted cell with its picture; cells of one prompt go through in batches.

    The base renders as it is: with a network merged, that network's pictures. Each picture's
    noise depends on its seed alone, so leaving cells out changes no other cell.
    """
    for prompt in prompts:
        wanted = [cell for cell in cells_of(prompt, options, epoch=epoch) if is_wanted(cell)]
        for start in range(0, len(wanted), options.batch_size):
            batch = wanted[start : start + options.batch_size]
            request = SampleRequest(
                text=prompt.text,
                negative=prompt.negative,
                seeds=tuple(cell.seed for cell in batch),
                width=prompt.width,
                height=prompt.height,
                cfg_scale=options.cfg_scale,
                steps=options.steps,
                sampler=options.sampler,
                clip_skip=clip_skip,
            )
            for cell, image in zip(batch, base.sample(request), strict=True):
                yield cell, prompt, image


def parameters_text(
    cell: Cell, prompt: Prompt, options: RenderOptions, *, clip_skip: int, model: str, lora: str
) -> str:
    """Return a picture's settings as A1111 writes and reads them; `lora` is "" for the base."""
    lines = [f"{prompt.text} <lora:{lora}:1>" if lora else prompt.text]
    if prompt.negative:
        lines.append(f"Negative prompt: {prompt.negative}")
    settings = {
        "Steps": options.steps,
        "Sampler": options.sampler,
        "CFG scale": f"{options.cfg_scale:g}",
        "Seed": cell.seed,
        "Size": f"{cell.width}x{cell.height}",
        "Model": model,
        **({"Clip skip": clip_skip} if clip_skip > 1 else {}),  # A1111 leaves 1 out
        "RNG": "CPU",
    }
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in settings.items()))
    return "\n".join(lines)


def _quoted(value: object) -> str:
    """Return a value as A1111 writes it: as JSON where it could be taken for more than one."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r"[,:\n]", text) else text


def png_bytes(image: Image, parameters: str) -> bytes:
    """Return the picture as a PNG file that carries `parameters`."""
    info = PngInfo()
    if parameters.isascii():
        info.add_text("parameters", parameters)
    else:
        info.add_itxt("parameters", parameters)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()
