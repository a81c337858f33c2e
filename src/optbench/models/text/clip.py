"""Captions -> tokens -> states of a CLIP text encoder, in pieces of 75 tokens as kohya cuts them.

Shapes: B captions, K pieces, T tokens of a piece (77, its two marks included), E embedding width.
"""

from __future__ import annotations

import json
import lzma
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from optbench.contracts import Conditioning, TextOptions
from optbench.models.compute import text_model
from optbench.models.text.prompt_grammar import reads_as_written
from optbench.schema import PIECE_TOKENS
from optbench.storage.resources import asset

_GRAMMAR_VERSION = 1  # raise it when equal prompts begin to give other images
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

    A caption is cut by number of tokens alone. Where padding is not the end mark (OpenCLIP), a
    full piece ends with the end mark, and an empty one begins with it.
    """
    num_pieces = max_token_length // PIECE_TOKENS
    ids: Tensor = tokenizer(
        list(captions),
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


def cut_texts(tokenizer: Any, texts: Sequence[str], *, max_token_length: int) -> tuple[str, ...]:
    """Return the texts of more tokens than that, the two marks not counted."""
    return tuple(text for text in texts if len(tokenizer(text).input_ids) > max_token_length + 2)


def prompt_settings(
    tokenizer: Any, prompts: Sequence[str], text_options: TextOptions
) -> dict[str, object]:
    """Return what decides how prompts are read: clip skip, and the grammar where it matters.

    It does not where every prompt is one piece of plain text.
    """
    is_plain = all(reads_as_written(prompt) for prompt in prompts) and not cut_texts(
        tokenizer, prompts, max_token_length=PIECE_TOKENS
    )
    grammar = {} if is_plain else {"grammar": _GRAMMAR_VERSION}
    return {"clip_skip": options(text_options).clip_skip, **grammar}


def stack(conditionings: Sequence[Conditioning]) -> dict[str, Tensor]:
    """Return one batch of conditionings whose texts are all of one number of tokens."""
    return {
        name: torch.cat([conditioning[name] for conditioning in conditionings])
        for name in conditionings[0]
    }


_START, _END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"
# Bytes that stand for themselves in the vocabulary, in its order; the others follow them.
_PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))
_NUM_BYTES = 256


def clip_tokenizer(*, pad_token: str = _END) -> Any:
    """Return CLIP's tokenizer: 49408 tokens, the last two the marks of start and end.

    Args:
        pad_token: The end mark for CLIP itself; "!" (token 0) for OpenCLIP's text encoders.
    """
    vocabulary, merges = _vocabulary()
    numbered = {token: number for number, token in enumerate(vocabulary)}
    return CLIPTokenizer(vocab=numbered, merges=merges, pad_token=pad_token, model_max_length=77)


def read_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a folder; its library says nothing useful of a damaged one.

    Raises:
        OSError, ValueError: If vocabulary or merges are missing or damaged.
    """
    json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(merges, start=1):
        if line and not line.startswith("#version") and len(line.split(" ")) != 2:
            raise ValueError(f"merges.txt, line {number}: {line!r} is no pair")
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def _vocabulary() -> tuple[list[str], list[tuple[str, str]]]:
    """Return all tokens in order and the merges that make them.

    Byte-pair encoding by CLIP's rule: first the bytes, then the bytes at a word's end, then one
    token per merge. The file holds each merge as the numbers of the two tokens it joins.
    """
    spelled = [chr(byte) for byte in _PRINTABLE]
    spelled += [chr(_NUM_BYTES + offset) for offset in range(_NUM_BYTES - len(_PRINTABLE))]
    tokens = [*spelled, *(f"{letter}{_WORD_END}" for letter in spelled)]
    packed = lzma.decompress((asset("clip") / "merges.xz").read_bytes())
    merges = []
    for left, right in struct.iter_unpack("<HH", packed):
        merges.append((tokens[left], tokens[right]))
        tokens.append(tokens[left] + tokens[right])
    return [*tokens, _START, _END], merges
