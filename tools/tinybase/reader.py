"""The reader of `optbench.metrics.embedded`: attributes from the image encoder's patch states.

The encoder's one embedding tells who is there and where, and hardly what she wears (28 % of
outfits by a linear reader); its patch states do. A few learned queries attend over the patches of
two layers, and a small net names outfit, its colour and background from what they read. It learns
from drawings alone, and the file it leaves is text: numbers in steps of 8 bits.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection

from optbench import rng
from optbench.storage import hashing
from optbench.storage.files import write_atomic
from tools.tinybase import stages, world
from tools.tinybase.autoencoder import to_tensor
from tools.tinybase.drawings import Drawings, thumbnail

ATTRIBUTES = ("outfit", "outfit_color", "background")
LAYERS = (1, 4)
_NUM_MIRELLE = 700  # of them 6 of 7 in her own two outfits
# And as many in every outfit, most of them through the autoencoder: without these the reader takes
# whoever has her head for one in her dress.
_NUM_MIXED, _MIXED_WEIGHT = 600, 3
_MIXED_OUTFITS = (1, 0, 2, 0, 0, None, 0, 0)  # None: an inhabitant; 0: an inhabitant's on her
_BLURRED_SHARE = 0.75
_BATCH_SIZE = 128
_PEAK_RATE = 4e-3
_STATE_NOISE = 0.1
_SMOOTHING = 0.05
_NUM_QUERIES, _VALUE_WIDTH, _HIDDEN_WIDTH = 8, 24, 64


class Reader(nn.Module):
    """Queries over normalized patch states (B, T, E), one hidden layer, a head per attribute."""

    def __init__(self, values: Mapping[str, Sequence[str]], num_tokens: int, width: int) -> None:
        """Prepare to name one of `values[attribute]` for each attribute."""
        super().__init__()
        self.values = {name: list(one) for name, one in values.items()}
        self.query = nn.Parameter(torch.randn(_NUM_QUERIES, width) * 0.05)
        self.place = nn.Parameter(torch.zeros(_NUM_QUERIES, num_tokens))
        self.value = nn.Linear(width, _VALUE_WIDTH)
        self.hidden = nn.Linear(_NUM_QUERIES * _VALUE_WIDTH, _HIDDEN_WIDTH)
        self.out = nn.Linear(_HIDDEN_WIDTH, sum(map(len, self.values.values())))

    def forward(self, states_BTE: Tensor) -> tuple[Tensor, ...]:
        """Return logits (B, number of values), one tensor per attribute."""
        looks_BKT = (self.query @ states_BTE.transpose(1, 2) + self.place).softmax(-1)
        read_BR = (looks_BKT @ self.value(states_BTE)).flatten(1)
        logits = self.out(F.gelu(self.hidden(read_BR)))
        return tuple(logits.split([len(one) for one in self.values.values()], 1))


def make_reader(
    folder: Path,
    base_folder: Path,
    target: Path,
    drawings: Mapping[tuple[int, int], Drawings],
    *,
    seed: int,
    num_steps: int,
) -> dict[str, float]:
    """Write a reader for a base's image encoder; return its accuracy on a held-out tenth.

    `folder` is where the base was pre-trained; the training resumes there after a kill.
    """
    encoder_folder = base_folder / "image_encoder"
    encoder = CLIPVisionModelWithProjection.from_pretrained(encoder_folder, torch_dtype="float32")
    thumbnails, truths = _learned_from(drawings, base_folder, seed=seed)
    states_NTE = patch_states(encoder, thumbnails)
    order = torch.randperm(len(states_NTE), generator=rng.generator(seed, "tiny", "reader"))
    num_held_out = len(order) // 10
    learnt, held_out = order[num_held_out:], order[:num_held_out]
    mean_E = states_NTE[learnt].mean((0, 1))
    spread_E = states_NTE[learnt].std((0, 1))
    states_NTE = (states_NTE - mean_E) / spread_E
    values = {name: sorted({one[name] for one in truths}) for name in ATTRIBUTES}
    wanted_NA = torch.tensor(
        [[values[name].index(one[name]) for name in ATTRIBUTES] for one in truths]
    )
    reader = _trained(
        folder, values, states_NTE[learnt], wanted_NA[learnt], seed=seed, num_steps=num_steps
    )
    with torch.inference_mode():
        logits = reader(states_NTE[held_out])
    sha256 = hashing.file_sha256(encoder_folder / "model.safetensors")
    write_reader(target, reader, encoder=sha256, mean=mean_E, spread=spread_E)
    return {
        name: float((one.argmax(1) == wanted_NA[held_out, index]).float().mean())
        for index, (name, one) in enumerate(zip(ATTRIBUTES, logits, strict=True))
    }


@torch.inference_mode()
def patch_states(encoder: CLIPVisionModelWithProjection, thumbnails_NHWC: Tensor) -> Tensor:
    """Return the encoder's states (N, T, E) after the layers that are read, side by side."""
    found = []
    for start in range(0, len(thumbnails_NHWC), _BATCH_SIZE):
        part = thumbnails_NHWC[start : start + _BATCH_SIZE].permute(0, 3, 1, 2).float()
        output = encoder(pixel_values=part / 127.5 - 1, output_hidden_states=True)
        found.append(torch.cat([output.hidden_states[layer] for layer in LAYERS], -1))
    return torch.cat(found)


def write_reader(
    target: Path, reader: Reader, *, encoder: str, mean: Tensor, spread: Tensor
) -> None:
    """Write a reader as JSON, each tensor in 255 steps of its largest number."""
    tensors = {
        "mean": mean,
        "spread": spread,
        "query": reader.query,
        "place": reader.place,
        "value": reader.value.weight,
        "value_bias": reader.value.bias,
        "hidden": reader.hidden.weight,
        "hidden_bias": reader.hidden.bias,
        "out": reader.out.weight,
        "out_bias": reader.out.bias,
    }
    content = {
        "encoder": encoder,
        "layers": list(LAYERS),
        "values": reader.values,
        "tensors": {name: _packed(tensor.detach()) for name, tensor in tensors.items()},
    }
    write_atomic(target, json.dumps(content, indent=0) + "\n")


def _packed(tensor: Tensor) -> dict[str, Any]:
    scale = float(tensor.abs().max()) / 127 or 1.0
    steps = (tensor / scale).round().to(torch.int8).cpu().numpy()
    data = base64.b64encode(steps.tobytes()).decode()
    return {"shape": list(tensor.shape), "scale": float(np.float32(scale)), "int8": data}


def _learned_from(
    drawings: Mapping[tuple[int, int], Drawings], base_folder: Path, *, seed: int
) -> tuple[Tensor, list[Mapping[str, str]]]:
    """Return thumbnails (N, 128, 128, 3) of unspoilt inhabitants and of mirelle, and truths."""
    thumbnails: list[Tensor] = []
    truths: list[Mapping[str, str]] = []
    for one in drawings.values():
        whole = [index for index, drawn in enumerate(one.drawn) if not drawn.degraded]
        thumbnails += list(one.thumbnails_NHWC[whole])
        truths += [one.drawn[index].attributes for index in whole]
    for index in range(_NUM_MIRELLE):
        place = rng.shuffler(seed, "tiny", "others", "reader", index).getrandbits(48)
        width, height = world.SIZES[index % 2]
        outfit = (1, 2, 1, 2, 1, 2, 0)[index % 7]
        drawing = world.draw_mirelle(place, outfit=outfit, width=width, height=height)
        thumbnails.append(thumbnail(drawing.image))
        truths.append(drawing.attributes)
    vae = AutoencoderKL.from_pretrained(base_folder / "vae", torch_dtype=torch.float32).eval()
    for index in range(_NUM_MIXED):
        small, truth = _mixed(vae, index, seed=seed)
        thumbnails += [small] * _MIXED_WEIGHT
        truths += [truth] * _MIXED_WEIGHT
    return torch.stack(thumbnails), truths


@torch.inference_mode()
def _mixed(vae: AutoencoderKL, index: int, *, seed: int) -> tuple[Tensor, Mapping[str, str]]:
    """Return one figure in any outfit, mostly as blurred as the base renders."""
    draw = rng.shuffler(seed, "tiny", "others", "reader", "mixed", index)
    width, height = world.SIZES[draw.randrange(2)]
    place, outfit = draw.getrandbits(48), _MIXED_OUTFITS[index % len(_MIXED_OUTFITS)]
    if outfit is None:
        drawing = world.draw_sample(place, width=width, height=height)
    else:
        drawing = world.draw_mirelle(place, outfit=outfit, width=width, height=height)
    image = drawing.image
    if draw.random() < _BLURRED_SHARE:
        latents = vae.encode(to_tensor([np.asarray(image)])).latent_dist.mean
        generator = rng.generator(seed, "tiny", "others", "reader", "mixed", index)
        noise = torch.randn(latents.shape, generator=generator)
        latents = latents + latents.std() * 0.35 * draw.random() * noise
        decoded = vae.decode(latents * (1 + 0.3 * draw.random())).sample.clamp(-1, 1)[0]
        values = ((decoded.permute(1, 2, 0) + 1) * 127.5).round().to(torch.uint8)
        image = Image.fromarray(values.numpy())
    return thumbnail(image), drawing.attributes


def _trained(
    folder: Path,
    values: Mapping[str, Sequence[str]],
    states_NTE: Tensor,
    wanted_NA: Tensor,
    *,
    seed: int,
    num_steps: int,
) -> Reader:
    torch.manual_seed(rng.key(seed, "tiny", "reader"))
    reader = Reader(values, states_NTE.shape[1], states_NTE.shape[2])
    optimizer = torch.optim.AdamW(reader.parameters(), lr=_PEAK_RATE, weight_decay=0.05)

    def step(step_index: int) -> dict[str, Tensor]:
        stages.set_rate(optimizer, stages.falling_rate(step_index, num_steps, peak=_PEAK_RATE))
        draw = rng.generator(seed, "tiny", "reader", step_index)
        chosen = torch.randint(len(states_NTE), (_BATCH_SIZE,), generator=draw)
        states = states_NTE[chosen]
        states = states + _STATE_NOISE * torch.randn(states.shape, generator=draw)
        loss = torch.zeros(())
        for index, logits in enumerate(reader(states)):
            wanted = wanted_NA[chosen, index]
            loss = loss + F.cross_entropy(logits, wanted, label_smoothing=_SMOOTHING)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss}

    parts: dict[str, stages.Stateful] = {"reader": reader, "optimizer": optimizer}
    stages.run_stage("reader", folder, num_steps=num_steps, parts=parts, step=step)
    return reader.eval()
