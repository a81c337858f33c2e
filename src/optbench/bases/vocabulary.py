"""CLIP's tokenizer, from the merges that ship with optbench or from a checkpoint's own folder."""

from __future__ import annotations

import json
import lzma
import struct
from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer

from optbench.paths import asset

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
    tokens = [*spelled, *(f"{one}{_WORD_END}" for one in spelled)]
    packed = lzma.decompress((asset("clip") / "merges.xz").read_bytes())
    merges = []
    for left, right in struct.iter_unpack("<HH", packed):
        merges.append((tokens[left], tokens[right]))
        tokens.append(tokens[left] + tokens[right])
    return [*tokens, _START, _END], merges
