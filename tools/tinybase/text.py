"""The text encoder's and the image encoder's pre-training: captions and pictures find each other.

Two losses. The contrastive one of CLIP (Radford et al. 2021, arXiv 2103.00020) pulls a caption's
embedding to its own picture's among all of the batch. It alone leaves the token states, which are
what the unet reads, to chance; they learn by the second: one learned query per attribute attends
over the token states, as the unet's cross-attention will, and must name the attribute's value. A
colour is thereby bound to what it colours before the unet ever asks; learnt through the unet's
loss alone this took longer than everything else together.
"""

from __future__ import annotations

import math
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from optbench import rng
from tools.tinybase import captions, stages
from tools.tinybase.drawings import Drawings, Drawn
from tools.tinybase.shapes import EMBEDDING_WIDTH, TEXT_WIDTH, new_image_encoder, new_text_encoder

_BATCH_SIZE = 64
_PEAK_RATE = 1e-3
_CONTRAST_WEIGHT = 0.25
_FIRST_TEMPERATURE = 0.07
_MAX_LOGIT_SCALE = 100.0


class AttributeReader(nn.Module):
    """Attention queries and linear heads, one per attribute, over token states (B, T, E)."""

    def __init__(self, values: dict[str, list[str]]) -> None:
        """Prepare to name one of `values[attribute]` for each attribute."""
        super().__init__()
        self.values = values
        self.queries = nn.Parameter(torch.randn(len(values), TEXT_WIDTH) * 0.1)
        self.to_key = nn.Linear(TEXT_WIDTH, TEXT_WIDTH)
        self.heads = nn.ModuleList(
            nn.Linear(TEXT_WIDTH, len(options)) for options in values.values()
        )

    def forward(self, states_BTE: Tensor) -> list[Tensor]:
        """Return logits (B, number of values), one tensor per attribute."""
        scores_BAT = self.queries @ self.to_key(states_BTE).transpose(1, 2) / TEXT_WIDTH**0.5
        read_BAE = scores_BAT.softmax(-1) @ states_BTE
        return [head(read_BAE[:, index]) for index, head in enumerate(self.heads)]


class Matcher(nn.Module):
    """Embeds captions beside pictures; only its image encoder is kept afterwards."""

    def __init__(self) -> None:
        """Start with CLIP's temperature."""
        super().__init__()
        self.image_encoder = new_image_encoder()
        self.text_projection = nn.Linear(TEXT_WIDTH, EMBEDDING_WIDTH, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(_FIRST_TEMPERATURE)))

    def forward(self, pooled_BE: Tensor, thumbnails_BHWC: Tensor) -> tuple[Tensor, Tensor]:
        """Return the contrastive loss and the share of pictures that find their caption."""
        texts_BE = F.normalize(self.text_projection(pooled_BE).float(), dim=-1)
        images_BE = F.normalize(embed(self.image_encoder, thumbnails_BHWC).float(), dim=-1)
        scale = self.log_scale.exp().clamp(max=_MAX_LOGIT_SCALE)
        logits_BB = scale * images_BE @ texts_BE.T
        own = torch.arange(len(logits_BB), device=logits_BB.device)
        loss = (F.cross_entropy(logits_BB, own) + F.cross_entropy(logits_BB.T, own)) / 2
        return loss, (logits_BB.argmax(1) == own).float().mean()


def embed(encoder: CLIPVisionModelWithProjection, thumbnails_BHWC: Tensor) -> Tensor:
    """Return image embeddings (B, 64) of thumbnails (B, 128, 128, 3), uint8."""
    pixels_BCHW = thumbnails_BHWC.permute(0, 3, 1, 2).to(encoder.dtype) / 127.5 - 1
    embeddings: Tensor = encoder(pixel_values=pixels_BCHW.contiguous()).image_embeds
    return embeddings


def attribute_values(drawn: list[Drawn]) -> dict[str, list[str]]:
    """Return every attribute's values in the drawings, sorted; single-valued ones left out."""
    found: dict[str, set[str]] = {}
    for one in drawn:
        for name, value in one.attributes.items():
            found.setdefault(name, set()).add(value)
    return {name: sorted(values) for name, values in found.items() if len(values) > 1}


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Return token ids (B, 77), padded and cut as SD pipelines do."""
    encoded = tokenizer(
        texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    )
    ids: Tensor = encoded.input_ids
    return ids


def train_encoders(
    folder: Path,
    tokenizer: CLIPTokenizer,
    drawings: dict[tuple[int, int], Drawings],
    *,
    seed: int,
    num_steps: int,
) -> tuple[CLIPTextModel, CLIPVisionModelWithProjection]:
    """Return a text encoder whose token states hold the caption's attributes, and its counterpart.

    The second is the image encoder the captions were matched with.
    """
    values = attribute_values([one for size in drawings.values() for one in size.drawn])
    torch.manual_seed(rng.key(seed, "tiny", "text encoder"))
    encoder = new_text_encoder(tokenizer).to(stages.device())
    reader = AttributeReader(values).to(stages.device())
    matcher = Matcher().to(stages.device())
    parameters = [*encoder.parameters(), *reader.parameters(), *matcher.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=_PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.01)

    def step(step_index: int) -> dict[str, Tensor]:
        stages.set_rate(optimizer, stages.falling_rate(step_index, num_steps, peak=_PEAK_RATE))
        draw = rng.shuffler(seed, "tiny", "text", step_index)
        thumbnails, chosen, texts = _draw_batch(drawings, draw)
        # Padding after the first end-of-text tokens says nothing; shorter batches are faster.
        ids = tokenize(tokenizer, texts)
        longest = int((ids != tokenizer.pad_token_id).sum(1).max()) + 2
        with stages.autocast():
            encoded = encoder(input_ids=ids[:, :longest].to(stages.device()))
            read, right = _reading_loss(reader, encoded.last_hidden_state, chosen)
            contrast, found = matcher(encoded.pooler_output, thumbnails.to(stages.device()))
        optimizer.zero_grad()
        (read + _CONTRAST_WEIGHT * contrast).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return {"read": read, "right": right, "contrast": contrast, "found": found}

    parts = {"encoder": encoder, "reader": reader, "matcher": matcher, "optimizer": optimizer}
    stages.run_stage("text", folder, num_steps=num_steps, parts=parts, step=step)
    return encoder, matcher.image_encoder


def _draw_batch(
    drawings: dict[tuple[int, int], Drawings], draw: random.Random
) -> tuple[Tensor, list[Drawn], list[str]]:
    """Return thumbnails of drawings of all sizes, what they show, and a fresh caption for each."""
    sizes = list(drawings)
    weights = [len(drawings[size].drawn) for size in sizes]
    thumbnails, chosen = [], []
    for size in draw.choices(sizes, weights, k=_BATCH_SIZE):
        index = draw.randrange(len(drawings[size].drawn))
        thumbnails.append(drawings[size].thumbnails_NHWC[index])
        chosen.append(drawings[size].drawn[index])
    texts = [captions.caption(one.tags, draw, degraded=one.degraded) for one in chosen]
    return torch.stack(thumbnails), chosen, texts


def _reading_loss(
    reader: AttributeReader, states_BTE: Tensor, chosen: list[Drawn]
) -> tuple[Tensor, Tensor]:
    """Return the mean cross entropy over the attributes and the share that is named right."""
    loss = torch.zeros((), device=states_BTE.device)
    right = torch.zeros(())
    for (name, options), logits in zip(reader.values.items(), reader(states_BTE), strict=True):
        wanted = torch.tensor([options.index(one.attributes[name]) for one in chosen])
        loss = loss + F.cross_entropy(logits.float(), wanted.to(logits.device))
        right = right + (logits.argmax(1).cpu() == wanted).float().mean()
    return loss / len(reader.values), right / len(reader.values)
