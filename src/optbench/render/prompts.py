"""Rendering: prompts x seeds -> pictures with their cell coordinates."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, final

from PIL.PngImagePlugin import PngInfo

from optbench.contracts import BaseModel, SampleRequest, TextOptions
from optbench.errors import is_out_of_memory
from optbench.models.device import free_memory
from optbench.models.files.facts import kohya_hashes
from optbench.models.samplers import AUTOMATIC, SAMPLERS
from optbench.models.text.prompt_grammar import LoraTag, without_loras
from optbench.records import Cell
from optbench.schema import BaseOptions, Prompt, RenderOptions

if TYPE_CHECKING:
    from PIL.Image import Image


_NUM_HASH_DIGITS = 10  # A1111's


class Painter(Protocol):
    """What makes pictures: a base, or one that goes on in smaller batches."""

    def sample(self, request: SampleRequest) -> list[Image]:
        """Return one picture per seed."""


@final
class Halving:
    """A base that goes on with half of a batch where a whole one does not fit into memory.

    Each picture's noise is its own, so the pictures are the same. What fits is remembered for
    pictures of as many pixels.
    """

    def __init__(self, base: BaseModel, say: Callable[[str], None]) -> None:
        """Sample from `base`; `say` is told of every smaller batch."""
        self._base = base
        self._say = say
        self._most: dict[int, int] = {}  # pixels of a picture -> pictures at once

    def sample(self, request: SampleRequest) -> list[Image]:
        """Return one picture per seed.

        Raises:
            RuntimeError, MemoryError: Out of memory with a single picture, or any other error.
        """
        num_pixels = request.width * request.height
        images: list[Image] = []
        while left := request.seeds[len(images) :]:
            part = left[: self._most.get(num_pixels, len(left))]
            if made := self._tried(replace(request, seeds=part)):
                images += made
                continue
            free_memory()  # here, where no error keeps the tensors alive
            self._most[num_pixels] = len(part) // 2
            self._say(
                f"{len(part)} pictures of {request.width}x{request.height} at once do not fit into "
                f"memory; going on with {len(part) // 2} (render.batch_size={len(part) // 2} "
                "does so from the start)"
            )
        return images

    def _tried(self, request: SampleRequest) -> list[Image] | None:
        try:
            return self._base.sample(request)
        except (MemoryError, RuntimeError) as error:
            if len(request.seeds) == 1 or not is_out_of_memory(error):
                raise
            return None


def cells_of(prompt: Prompt, options: RenderOptions, *, epoch: int) -> list[Cell]:
    """Return one prompt's cells after one epoch, a cell per seed."""
    return [
        Cell(prompt=prompt.name, width=prompt.width, height=prompt.height, seed=seed, epoch=epoch)
        for seed in options.seeds
    ]


def render_prompts(
    base: Painter,
    prompts: Sequence[Prompt],
    options: RenderOptions,
    *,
    epoch: int,
    text_options: TextOptions,
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
                text_options=text_options,
            )
            for cell, image in zip(batch, base.sample(request), strict=True):
                yield cell, prompt, image


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a picture is made with, as its text names it."""

    model: str
    loras: tuple[LoraTag, ...] = ()
    model_hash: str = ""  # A1111's ten digits; "" where the base is no single file
    vae: str = ""  # of a separate autoencoder
    vae_hash: str = ""


def origin_of(base: BaseOptions, *, cache_dir: Path) -> Origin:
    """Return the names and hashes of a base's own files; what was hashed once is not read again."""
    found = kohya_hashes(base, cache_dir=cache_dir)
    return Origin(
        model=base.name,
        model_hash=found.get("ss_new_sd_model_hash", "")[:_NUM_HASH_DIGITS],
        vae=found.get("ss_vae_name", ""),
        vae_hash=found.get("ss_new_vae_hash", "")[:_NUM_HASH_DIGITS],
    )


def parameters_text(
    cell: Cell,
    prompt: Prompt,
    options: RenderOptions,
    *,
    text_options: TextOptions,
    origin: Origin,
) -> str:
    """Return a picture's settings as A1111 writes and reads them; LoRAs stand in the prompt."""
    text, _ = without_loras(prompt.text) if origin.loras else (prompt.text, ())
    tags = "".join(f" <lora:{one.name}:{one.strength:g}>" for one in origin.loras)
    lines = [f"{text.rstrip() if tags else text}{tags}"]
    if prompt.negative:
        lines.append(f"Negative prompt: {prompt.negative}")
    sampler = SAMPLERS[options.sampler]
    settings = {
        "Steps": options.steps,
        "Sampler": sampler.name,
        # A1111 takes its own choice for granted where nothing is said.
        **({"Schedule type": sampler.schedule} if sampler.schedule != AUTOMATIC else {}),
        "CFG scale": f"{options.cfg_scale:g}",
        "Seed": cell.seed,
        "Size": f"{cell.width}x{cell.height}",
        **({"Model hash": origin.model_hash} if origin.model_hash else {}),
        "Model": origin.model,
        **({"VAE hash": origin.vae_hash} if origin.vae_hash else {}),
        **({"VAE": origin.vae} if origin.vae else {}),
        **text_options.image_parameters(),
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
