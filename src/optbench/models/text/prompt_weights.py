"""Prompts -> states of CLIP text encoders, read and weighted as in A1111.

Unlike a caption, a prompt has any length and its words have weights. Its tokens are cut into
pieces of 75, at a comma where one is near; each piece is encoded by itself between its two marks,
and all states lie side by side.

Shapes: P prompts, K pieces, T tokens of a piece (77, its two marks included), E embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from optbench.models.text.prompt_grammar import read_sections
from optbench.models.text.tokens import cleaned
from optbench.schema import PIECE_TOKENS

_COMMA = ",</w>"
_COMMA_REACH = 20  # tokens that may move to the next piece with the comma before them

Piece = list[tuple[int, float]]  # token and weight, without marks


def prompt_tokens(tokenizer: Any, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return token ids and weights (P, K, T); shorter prompts get empty pieces at their end.

    The marks and the padding weigh 1. As in A1111 a piece of fewer than 75 tokens ends with the
    end mark, and what comes after that is the padding of the tokenizer.
    """
    pieces = [_pieces(tokenizer, prompt) for prompt in prompts]
    num_pieces = max(map(len, pieces))
    start, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    ids, weights = [], []
    for prompt_pieces in pieces:
        for piece in [*prompt_pieces, *([[]] * (num_pieces - len(prompt_pieces)))]:
            num_free = PIECE_TOKENS - len(piece)
            ids.append([start, *(token for token, _ in piece), end, *([pad] * num_free)])
            weights.append([1.0, *(weight for _, weight in piece), *([1.0] * (num_free + 1))])
    shape = (len(prompts), num_pieces, -1)
    return torch.tensor(ids).view(shape), torch.tensor(weights).view(shape)


def _pieces(tokenizer: Any, prompt: str) -> list[Piece]:
    """Return a prompt's tokens in pieces of at most 75; at least one piece, which may be empty."""
    comma = tokenizer.get_vocab().get(_COMMA)
    done: list[Piece] = []
    piece: Piece = []
    last_comma: int | None = None
    sections = read_sections(prompt)
    for index, section in enumerate(sections):
        if index:
            done.append(piece)
            piece, last_comma = [], None
        for span in section:
            # verbose: else the library warns of more tokens than one piece holds.
            text = cleaned(span.text)
            for token in tokenizer(text, add_special_tokens=False, verbose=False).input_ids:
                if len(piece) == PIECE_TOKENS:
                    # What stands behind a near comma goes on together.
                    is_near = last_comma is not None and len(piece) - last_comma <= _COMMA_REACH
                    cut = last_comma + 1 if last_comma is not None and is_near else PIECE_TOKENS
                    cut = PIECE_TOKENS if token == comma else cut
                    done.append(piece[:cut])
                    piece, last_comma = piece[cut:], None
                if token == comma:
                    last_comma = len(piece)
                piece.append((token, span.weight))
    return [*done, piece] if piece or not done else done


def emphasize(states_PKTE: Tensor, weights_PKT: Tensor) -> Tensor:
    """Return every token's states times its weight, at the piece's mean from before.

    The mean is over all tokens and the whole width of a piece: A1111's emphasis. A piece whose
    weights are all 1 comes back as it was, bit for bit.
    """
    is_weighted_PK = (weights_PKT != 1).any(dim=2)
    if not is_weighted_PK.any():
        return states_PKTE
    before = states_PKTE.float()
    after = before * weights_PKT.to(before.device)[..., None]
    restored = after * (before.mean(dim=(2, 3)) / after.mean(dim=(2, 3)))[..., None, None]
    chosen = is_weighted_PK.to(before.device)[..., None, None]
    return torch.where(chosen, restored.to(states_PKTE.dtype), states_PKTE)


def side_by_side(states_PKTE: Tensor) -> Tensor:
    """Return (P, 77 K, E): the states of all pieces, their marks included."""
    return states_PKTE.flatten(1, 2)
