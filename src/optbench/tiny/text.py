"""The text encoder's pre-training: read every attribute back out of a caption's token states.

One learned query per attribute attends over the token states, as the unet's cross-attention will,
and must name the attribute's value. A colour is thereby bound to what it colours before the unet
ever asks; learnt through the unet's loss alone this took longer than everything else together.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from optbench import rng
from optbench.tiny import captions, stages
from optbench.tiny.drawings import Drawings, Drawn
from optbench.tiny.shapes import TEXT_WIDTH, new_text_encoder

_BATCH_SIZE = 64
_PEAK_RATE = 1e-3


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


def train_text_encoder(
    folder: Path,
    tokenizer: CLIPTokenizer,
    drawings: dict[tuple[int, int], Drawings],
    *,
    seed: int,
    num_steps: int,
) -> CLIPTextModel:
    """Return a text encoder whose token states hold the caption's attributes."""
    drawn = [one for size in drawings.values() for one in size.drawn]
    values = attribute_values(drawn)
    torch.manual_seed(rng.key(seed, "tiny", "text encoder"))
    encoder = new_text_encoder(tokenizer).to(stages.device())
    reader = AttributeReader(values).to(stages.device())
    parameters = [*encoder.parameters(), *reader.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=_PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.01)

    def step(step_index: int) -> dict[str, Tensor]:
        stages.set_rate(optimizer, stages.falling_rate(step_index, num_steps, peak=_PEAK_RATE))
        draw = rng.shuffler(seed, "tiny", "text", step_index)
        chosen = [drawn[draw.randrange(len(drawn))] for _ in range(_BATCH_SIZE)]
        texts = [captions.caption(one.tags, draw, degraded=one.degraded) for one in chosen]
        # Padding after the first end-of-text tokens says nothing; shorter batches are faster.
        ids = tokenize(tokenizer, texts)
        longest = int((ids != tokenizer.pad_token_id).sum(1).max()) + 2
        states = encoder(input_ids=ids[:, :longest].to(stages.device())).last_hidden_state
        loss = torch.zeros((), device=states.device)
        right = torch.zeros(())
        for (name, options), logits in zip(values.items(), reader(states), strict=True):
            wanted = torch.tensor([options.index(one.attributes[name]) for one in chosen])
            loss = loss + F.cross_entropy(logits, wanted.to(logits.device)) / len(values)
            right = right + (logits.argmax(1).cpu() == wanted).float().mean() / len(values)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return {"loss": loss, "right": right}

    parts = {"encoder": encoder, "reader": reader, "optimizer": optimizer}
    stages.run_stage("text", folder, num_steps=num_steps, parts=parts, step=step)
    return encoder
