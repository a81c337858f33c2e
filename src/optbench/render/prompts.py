"""Render prompts x seeds into images, and write them as PNG files that say how they were made."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from optbench.storage.files import write_atomic

if TYPE_CHECKING:
    from PIL.Image import Image


_NUM_HASH_DIGITS = 10  # A1111's


class ImageSampler(Protocol):
    """What makes images: a base model, or an `OomSafeSampler` around one."""

    def sample(self, request: SampleRequest) -> list[Image]:
        """Return one image per seed."""


@final
class OomSafeSampler:
    """Samples from a base model, in halves of a batch that does not fit into memory.

    Each image's noise is its own, so the images are the same. What fits is remembered for images
    of as many pixels.
    """

    def __init__(self, base: BaseModel, say: Callable[[str], None]) -> None:
        """Sample from `base`; `say` is told of every smaller batch."""
        self._base = base
        self._say = say
        self._most: dict[int, int] = {}  # pixels of an image -> images at once

    def sample(self, request: SampleRequest) -> list[Image]:
        """Return one image per seed.

        Raises:
            RuntimeError, MemoryError: Out of memory with a single image, or any other error.
        """
        num_pixels = request.width * request.height
        images: list[Image] = []
        while left := request.seeds[len(images) :]:
            part = left[: self._most.get(num_pixels, len(left))]
            try:
                images += self._base.sample(replace(request, seeds=part))
                continue
            except (MemoryError, RuntimeError) as error:
                if len(part) == 1 or not is_out_of_memory(error):
                    raise
            free_memory()  # here, where no error keeps the tensors alive
            self._most[num_pixels] = len(part) // 2
            self._say(
                f"{len(part)} images of {request.width}x{request.height} at once do not fit into "
                f"memory; going on with {len(part) // 2} (render.batch_size={len(part) // 2} "
                "does so from the start)"
            )
        return images


def cells_of(prompt: Prompt, options: RenderOptions, *, epoch: int) -> list[Cell]:
    """Return one prompt's cells after one epoch, a cell per seed."""
    return [
        Cell(prompt=prompt.name, width=prompt.width, height=prompt.height, seed=seed, epoch=epoch)
        for seed in options.seeds
    ]


def render_prompts(
    sampler: ImageSampler,
    prompts: Sequence[Prompt],
    options: RenderOptions,
    *,
    epoch: int,
    text_options: TextOptions,
    is_wanted: Callable[[Cell], bool],
) -> Iterator[tuple[Cell, Prompt, Image]]:
    """Yield every wanted cell with its image; cells of one prompt go through in batches.

    The base model renders as it is: with a network merged, that network's images. Each image's
    noise depends on its seed alone, so leaving cells out changes no other cell.
    """
    for prompt in prompts:
        cells = [cell for cell in cells_of(prompt, options, epoch=epoch) if is_wanted(cell)]
        for start in range(0, len(cells), options.batch_size):
            batch = cells[start : start + options.batch_size]
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
            for cell, image in zip(batch, sampler.sample(request), strict=True):
                yield cell, prompt, image


def write_images(
    sampler: ImageSampler,
    prompts: Sequence[Prompt],
    options: RenderOptions,
    paths: Mapping[Cell, Path],
    *,
    epoch: int,
    text_options: TextOptions,
    origin: Origin,
) -> None:
    """Render the cells of `paths` and write each as a PNG file, batch by batch.

    A file is there entirely or not at all, and carries A1111's text of how it was made.
    """
    import torch  # here: what only looks at images must not wait for it

    with torch.inference_mode():
        for cell, prompt, image in render_prompts(
            sampler,
            prompts,
            options,
            epoch=epoch,
            text_options=text_options,
            is_wanted=paths.__contains__,
        ):
            text = parameters_text(cell, prompt, options, text_options=text_options, origin=origin)
            write_atomic(paths[cell], png_bytes(image, text))


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What an image is made with, as its text names it."""

    model: str
    loras: tuple[LoraTag, ...] = ()
    model_hash: str = ""  # A1111's ten digits; "" where the base is no single file
    vae: str = ""  # of a separate autoencoder
    vae_hash: str = ""


def origin_of(base: BaseOptions, *, cache_dir: Path) -> Origin:
    """Return the names and hashes of a base model's own files, read once and then remembered."""
    hashes = kohya_hashes(base, cache_dir=cache_dir)
    return Origin(
        model=base.name,
        model_hash=hashes.get("ss_new_sd_model_hash", "")[:_NUM_HASH_DIGITS],
        vae=hashes.get("ss_vae_name", ""),
        vae_hash=hashes.get("ss_new_vae_hash", "")[:_NUM_HASH_DIGITS],
    )


def parameters_text(
    cell: Cell,
    prompt: Prompt,
    options: RenderOptions,
    *,
    text_options: TextOptions,
    origin: Origin,
) -> str:
    """Return an image's settings as A1111 writes and reads them; LoRAs stand in the prompt."""
    text, _ = without_loras(prompt.text) if origin.loras else (prompt.text, ())
    tags = "".join(f" <lora:{lora.name}:{lora.strength:g}>" for lora in origin.loras)
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
    """Return the image as a PNG file that carries `parameters`."""
    info = PngInfo()
    if parameters.isascii():
        info.add_text("parameters", parameters)
    else:
        info.add_itxt("parameters", parameters)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()
