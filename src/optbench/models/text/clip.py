"""Captions -> tokens -> states of a CLIP text encoder, in pieces of 75 tokens as kohya cuts them.

Shapes: B captions, K pieces, T tokens of a piece (77, its two marks included), E embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from optbench.contracts import Conditioning, TextOptions
from optbench.models.compute import text_model
from optbench.models.text.prompt_grammar import GRAMMAR_VERSION, reads_as_written
from optbench.models.text.tokens import (
    CLEANING_VERSION,
    END,
    MAX_CAPTION_LETTERS,
    cleaned,
    is_repaired,
    read_vocabulary,
    vocabulary,
)
from optbench.schema import PIECE_TOKENS

_NUM_TOKENS = PIECE_TOKENS + 2  # what CLIP's text encoder has positions for


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipTextOptions:
    """How CLIP text encoders read: which layer's states, and how many tokens of a caption."""

    clip_skip: int = 1  # 1: the last layer
    max_token_length: int = PIECE_TOKENS  # a multiple of 75

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> ClipTextOptions:
        """Return those of `settings` that CLIP knows; defaults for those that are not there."""
        names = ("clip_skip", "max_token_length")
        return cls(**{name: settings[name] for name in names if name in settings})

    @property
    def max_tokens(self) -> int:
        """Return how many tokens of a caption are read, the two marks not counted."""
        return self.max_token_length

    def settings(self) -> dict[str, object]:
        """Return every setting by its name in the configuration."""
        return {"clip_skip": self.clip_skip, "max_token_length": self.max_token_length}

    def image_parameters(self) -> dict[str, object]:
        """Return A1111's "Clip skip", which it leaves out where it is 1."""
        return {"Clip skip": self.clip_skip} if self.clip_skip > 1 else {}


def options(text_options: TextOptions) -> ClipTextOptions:
    """Return the options as CLIP's, which a base model with CLIP gave out itself."""
    assert isinstance(text_options, ClipTextOptions)
    return text_options


def token_pieces(tokenizer: Any, captions: Sequence[str], *, max_token_length: int) -> Tensor:
    """Return token ids (B, K, T): each piece of 75 between a start mark and an end.

    A caption is cleaned, and cut by number of tokens alone. Where padding is not the end mark
    (OpenCLIP), a full piece ends with the end mark, and an empty one begins with it.
    """
    num_pieces = max_token_length // PIECE_TOKENS
    ids: Tensor = tokenizer(
        [cleaned(caption, num_letters=MAX_CAPTION_LETTERS) for caption in captions],
        padding="max_length",
        truncation=True,
        max_length=max_token_length + 2,
        return_tensors="pt",
    ).input_ids
    if num_pieces == 1:
        return ids[:, None]
    inner_BKT = ids[:, 1:-1].unflatten(1, (num_pieces, PIECE_TOKENS))
    marks_BK1 = [ids[:, end, None, None].expand(-1, num_pieces, 1) for end in (0, -1)]
    pieces_BKT = torch.cat([marks_BK1[0], inner_BKT, marks_BK1[1]], dim=2)
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    if pad != end:
        is_full_BK = (pieces_BKT[:, :, -2] != end) & (pieces_BKT[:, :, -2] != pad)
        pieces_BKT[:, :, -1][is_full_BK] = end
        pieces_BKT[:, :, 1][pieces_BKT[:, :, 1] == pad] = end
    return pieces_BKT


def joined_states(states_BKTE: Tensor) -> Tensor:
    """Return (B, 75 K + 2, E): the first start mark, the tokens of all pieces, the last end."""
    if states_BKTE.shape[1] == 1:
        return states_BKTE[:, 0]
    inner_BTE = states_BKTE[:, :, 1:-1].flatten(1, 2)
    return torch.cat([states_BKTE[:, 0, :1], inner_BTE, states_BKTE[:, -1, -1:]], dim=1)


def encoded(encoder: Any, pieces_BKT: Tensor, *, layer: int | None) -> tuple[Tensor, Tensor]:
    """Return two kinds of states (B, K, T, E) of every piece: a layer's, and the last, normed.

    Args:
        encoder: A text encoder of transformers.
        pieces_BKT: Token ids on the encoder's device.
        layer: Counted from the end, -1 the last one, before the final norm; None: no layer is
            asked for, and the last states, normed, take its place.
    """
    num_pieces = pieces_BKT.shape[1]
    ids = pieces_BKT.flatten(0, 1)
    answer = text_model(encoder)(input_ids=ids, output_hidden_states=layer is not None)
    last = answer.last_hidden_state.unflatten(0, (-1, num_pieces))
    if layer is None:
        return last, last
    return answer.hidden_states[layer].unflatten(0, (-1, num_pieces)), last


def num_tokens(tokenizer: Any, texts: Sequence[str]) -> tuple[int, ...]:
    """Return how many tokens each text has, the two marks left out.

    Of a text of more than `MAX_CAPTION_LETTERS` letters these are counted.
    """
    beginnings = (cleaned(text, num_letters=MAX_CAPTION_LETTERS) for text in texts)
    return tuple(
        # verbose: else the library warns of more tokens than one piece holds.
        len(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
        for text in beginnings
    )


def prompt_settings(
    tokenizer: Any, prompts: Sequence[str], text_options: TextOptions
) -> dict[str, object]:
    """Return what decides how prompts are read: clip skip, grammar and cleaning where they matter.

    The grammar does not where every prompt is one piece of plain text, nor the cleaning where it
    changes nothing.
    """
    is_plain = all(reads_as_written(prompt) for prompt in prompts) and all(
        number <= PIECE_TOKENS for number in num_tokens(tokenizer, prompts)
    )
    return {
        "clip_skip": options(text_options).clip_skip,
        **({} if is_plain else {"grammar": GRAMMAR_VERSION}),
        **({"cleaning": CLEANING_VERSION} if any(map(is_repaired, prompts)) else {}),
    }


def stack(conditionings: Sequence[Conditioning]) -> dict[str, Tensor]:
    """Return one batch of conditionings whose texts are all of one number of tokens."""
    return {
        name: torch.cat([conditioning[name] for conditioning in conditionings])
        for name in conditionings[0]
    }


def clip_tokenizer(*, pad_token: str = END) -> Any:
    """Return CLIP's tokenizer: 49408 tokens, the last two the marks of start and end.

    Args:
        pad_token: The end mark for CLIP itself; "!" (token 0) for OpenCLIP's text encoders.
    """
    words, merges = vocabulary()
    numbered = {token: number for number, token in enumerate(words)}
    return CLIPTokenizer(vocab=numbered, merges=merges, pad_token=pad_token, model_max_length=77)


def read_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a folder; its library says nothing useful of a damaged one.

    Raises:
        OSError, ValueError: If vocabulary or merges are missing or damaged.
    """
    read_vocabulary(folder)
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
