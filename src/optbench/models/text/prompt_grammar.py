r"""A1111's prompt grammar: emphasis, BREAK, prompt editing, alternation and LoRA tags, torch-free.

Of prompts for images only: the captions that a LoRA is trained on are never read this way.

    (x)         attention times 1.1; ((x)) times 1.21
    (x:1.3)     attention times 1.3
    [x]         attention divided by 1.1
    \( \) \[ \] \\   the letters themselves
    BREAK       what follows begins a new piece of 75 tokens
    [a:b:0.5]   a for half of the steps, then b; [a:b:10] a for 10 steps; [b:0.5], [a::0.5]
    [a|b|c]     a, b and c in turn, a step each
    <lora:NAME:0.8>  a LoRA and its strength

As A1111 reads them: an opened bracket without its end weights all that follows, an end without
its beginning is a letter. Unlike A1111's, a BREAK inside of brackets breaks there too.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

GRAMMAR_VERSION = 1  # raise it when equal prompts begin to give other images
STRONGER, WEAKER = 1.1, 1 / 1.1
# Quantifiers are possessive (++, *+): what they took is never tried again with less, so a long
# prompt is read in time proportional to its length, whatever stands in it.
_BREAK = re.compile(r"\bBREAK\b")
_AND = re.compile(r"\bAND\b")
_TOKEN = re.compile(
    r"""
    \\(?P<escaped>[()\[\]\\])
    | (?P<backslash>\\)
    | (?P<opened>[(\[])
    | :\s*+(?P<weight>[+-]?(?:\d++\.?\d*+|\.\d++))\s*+\)
    | (?P<closed>[)\]])
    | (?P<text>[^\\()\[\]:]++|:)
    """,
    re.VERBOSE,
)
_WHEN = re.compile(r"\s*+([+-]?(?:\d++\.?\d*+|\.\d++))\s*+")
_TAG = re.compile(r"<(\w++):([^<>]++)>")
_STRENGTH = re.compile(r"[+-]?(?:\d++\.?\d*+|\.\d++)")
_MAX_NESTED = 50  # brackets inside one another; deeper ones are said to be a mistake
_NUMBER = re.compile(r":\s*+([+-]?(?:\d++\.?\d*+|\.\d++))\s*+[)\]>]")
_LARGEST = 1e6
_SHOWN = 60  # letters of a mistake
# What decides where a prompt may be cut; tags and escaped letters are passed over whole.
_SPECIAL = re.compile(r"<\w++:[^<>]++>|\\.?|[()\[\]|:]", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A part of a prompt whose tokens all have one weight."""

    text: str
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraTag:
    """A LoRA that a prompt asks for."""

    name: str
    strength: float


Section = tuple[Span, ...]  # what lies between two BREAKs


def read_sections(text: str) -> tuple[Section, ...]:
    """Return a prompt's weighted parts, one section per BREAK and one more; never none."""
    weights: list[float] = []
    texts: list[str] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}  # where each open bracket's content begins

    def multiply(start: int, factor: float) -> None:
        for index in range(start, len(weights)):
            weights[index] *= factor

    for token in _TOKEN.finditer(text):
        letters = token[0]
        # Deeper ones are a mistake; as letters they cost no more than letters.
        if token["opened"] and len(opened[letters]) < _MAX_NESTED:
            opened[letters].append(len(weights))
        elif token["weight"] and opened["("]:
            multiply(opened["("].pop(), float(token["weight"]))
        elif letters == ")" and opened["("]:
            multiply(opened["("].pop(), STRONGER)
        elif letters == "]" and opened["["]:
            multiply(opened["["].pop(), WEAKER)
        elif not token["backslash"]:  # one that escapes nothing vanishes, as in A1111
            texts.append(token["escaped"] or letters)
            weights.append(1.0)
    for start in opened["("]:
        multiply(start, STRONGER)
    for start in opened["["]:
        multiply(start, WEAKER)
    return tuple(_joined(section) for section in _broken(texts, weights))


def _broken(texts: Sequence[str], weights: Sequence[float]) -> Iterator[list[Span]]:
    """Yield the spans of every section."""
    section: list[Span] = []
    for text, weight in zip(texts, weights, strict=True):
        pieces = _BREAK.split(text)
        for index, piece in enumerate(pieces):
            # The space around a BREAK goes with it.
            piece = piece.lstrip() if index > 0 else piece
            piece = piece.rstrip() if index < len(pieces) - 1 else piece
            if index > 0:
                yield section
                section = []
            section.append(Span(text=piece, weight=weight))
    yield section


def _joined(spans: Sequence[Span]) -> Section:
    """Return the spans with neighbours of one weight as one, for a tokenizer reads whole words."""
    written = (span for span in spans if span.text)
    return tuple(
        Span(text="".join(span.text for span in same), weight=weight)
        for weight, same in itertools.groupby(written, key=lambda span: span.weight)
    )


def at_steps(text: str, num_steps: int) -> tuple[str, ...]:
    """Return the prompt of every step: prompt editing and alternation put in, brackets left.

    `[a:b:WHEN]` is a in the first int(WHEN * num_steps) steps, or in the first WHEN where WHEN has
    no decimal point, and b afterwards.
    """
    parts = _parts(text)
    if all(isinstance(part, str) for part in parts):
        return (text,) * num_steps
    return tuple(_at_step(parts, step_index, num_steps) for step_index in range(num_steps))


def changes_by_step(text: str) -> bool:
    """Return whether a prompt has prompt editing or alternation in it."""
    return any(not isinstance(part, str) for part in _parts(text))


@dataclass(frozen=True, slots=True)
class _Edited:
    before: _Parts
    after: _Parts
    when: str


@dataclass(frozen=True, slots=True)
class _Alternated:
    choices: tuple[_Parts, ...]


_Parts = tuple["str | _Edited | _Alternated", ...]


def _at_step(parts: _Parts, step_index: int, num_steps: int) -> str:
    texts = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, _Edited):
            steps = float(part.when) * (num_steps if "." in part.when else 1)
            switch = int(max(0.0, min(steps, num_steps)))
            chosen = part.before if step_index < switch else part.after
            texts.append(_at_step(chosen, step_index, num_steps))
        else:
            chosen = part.choices[step_index % len(part.choices)]
            texts.append(_at_step(chosen, step_index, num_steps))
    return "".join(texts)


def _parts(text: str, depth: int = 0) -> _Parts:
    """Return the prompt as plain texts, edited ones and alternations, in their order."""
    parts: list[str | _Edited | _Alternated] = []
    ends = _ends(text) if depth < _MAX_NESTED else {}
    place = 0
    for start in sorted(ends):
        if start < place:
            continue  # inside of one that was read
        content = text[start + 1 : ends[start]]
        parts.append(text[place:start])
        if (part := _special(content, depth + 1)) is not None:
            parts.append(part)
        else:
            parts += ["[", *_parts(content, depth + 1), "]"]  # may still hold special ones
        place = ends[start] + 1
    parts.append(text[place:])
    merged: list[str | _Edited | _Alternated] = []
    for is_text, neighbours in itertools.groupby(parts, key=lambda part: isinstance(part, str)):
        same = list(neighbours)
        merged += ["".join(map(str, same))] if is_text else same
    return tuple(part for part in merged if part != "")


def _special(content: str, depth: int) -> _Edited | _Alternated | None:
    """Return what stands between square brackets, None if it is only weakened."""
    choices = _split(content, "|")
    if len(choices) > 1:
        return _Alternated(tuple(_parts(choice, depth) for choice in choices))
    pieces = _split(content, ":")
    if len(pieces) not in (2, 3) or not (when := _WHEN.fullmatch(pieces[-1])):
        return None
    before, after = ("", pieces[0]) if len(pieces) == 2 else (pieces[0], pieces[1])
    return _Edited(_parts(before, depth), _parts(after, depth), when[1])


def _split(content: str, mark: str) -> list[str]:
    """Return the text cut at the marks that are neither escaped nor inside of brackets or tags."""
    pieces, start, depth = [], 0, 0
    for special in _SPECIAL.finditer(content):
        letter = special[0]
        if letter in "([":
            depth += 1
        elif letter in ")]":
            depth -= depth > 0
        elif letter == mark and depth == 0:
            pieces.append(content[start : special.start()])
            start = special.end()
    return [*pieces, content[start:]]


def _ends(text: str) -> dict[int, int]:
    """Return where every square bracket ends, by where it opens; those without an end are not."""
    ends: dict[int, int] = {}
    opened: list[int] = []
    for special in re.finditer(r"\\.|[\[\]]", text, re.DOTALL):
        if special[0] == "[":
            opened.append(special.start())
        elif special[0] == "]" and opened:
            ends[opened.pop()] = special.start()
    return ends


def _deepest(text: str) -> int:
    """Return how many round and square brackets are inside one another at most."""
    depths, deepest = {"(": 0, "[": 0}, 0
    for token in _TOKEN.finditer(text):
        if token["opened"]:
            depths[token[0]] += 1
            deepest = max(deepest, sum(depths.values()))
        elif token["closed"] or token["weight"]:
            kind = "[" if token[0] == "]" else "("
            depths[kind] = max(0, depths[kind] - 1)
    return deepest


def without_loras(text: str) -> tuple[str, tuple[LoraTag, ...]]:
    """Return the prompt without its LoRA tags, and those; what `mistakes` says of stays in it."""
    tags = [tag for match in _TAG.finditer(text) if (tag := _lora_tag(match))]
    return _TAG.sub(lambda match: "" if _lora_tag(match) else match[0], text), tuple(tags)


def _lora_tag(match: re.Match[str]) -> LoraTag | None:
    """Return a tag's LoRA; None for one of another kind, or whose strength is no number."""
    name, _, strength = match[2].partition(":")
    if match[1] != "lora" or (strength and not _STRENGTH.fullmatch(strength)):
        return None
    return LoraTag(name=name, strength=float(strength or 1))


def mistakes(text: str, *, is_negative: bool = False) -> list[str]:
    """Return in words what is not read, or means nothing, in a prompt."""
    complaints = []
    for tag in _TAG.finditer(text):
        strength = tag[2].partition(":")[2]
        if tag[1] != "lora":
            complaints.append(
                f"{tag[0]}, of a kind that is not known; only <lora:NAME:STRENGTH> is"
            )
        elif is_negative:
            complaints.append(f"{tag[0]} in a negative prompt, where no LoRA can be")
        elif strength and not _STRENGTH.fullmatch(strength):
            complaints.append(f"{tag[0]}, whose strength {strength!r} is no number")
    if not is_negative and _AND.search(text):
        complaints.append("AND, which joins pictures in A1111 and is not read here; write `and`")
    deepest = _deepest(text)
    if deepest > _MAX_NESTED:
        return [*complaints, f"{deepest} brackets inside one another; {_MAX_NESTED} are the most"]
    complaints += [
        f"the number {number[:20]}, which is larger than {_LARGEST:g}"
        for number in dict.fromkeys(_NUMBER.findall(text))
        if abs(float(number)) > _LARGEST
    ]
    for start, end in sorted(_ends(text).items()):
        content = text[start + 1 : end]
        pieces = _split(content, "|")
        if len(pieces) > 1 and any(_WHEN.fullmatch(_split(piece, ":")[-1]) for piece in pieces):
            shown = content if len(content) <= _SHOWN else f"{content[:_SHOWN]}..."
            complaints.append(
                f"[{shown}], which both alternates and edits; put one inside the other"
            )
    return complaints


def reads_as_written(text: str) -> bool:
    """Return whether the grammar finds nothing in a prompt: every letter is only a letter."""
    return not re.search(r"[()\[\]\\<]|\bBREAK\b", text)


def emphasized(text: str) -> tuple[str, ...]:
    """Return the prompt's parts of another weight than 1, at any step, for a reader to see."""
    plain, _ = without_loras(text)
    parts = [
        f"{span.text.strip()} x{span.weight:.3g}"
        for section in read_sections(plain)
        for span in section
        if span.weight != 1 and span.text.strip()
    ]
    return tuple(dict.fromkeys(parts))


def is_balanced(text: str) -> bool:
    """Return whether every bracket that is not escaped has its partner."""
    counts = {"(": 0, "[": 0}
    partner = {")": "(", "]": "["}
    for token in _TOKEN.finditer(text):
        for letter in "" if token["escaped"] else token[0]:
            if letter in counts:
                counts[letter] += 1
            elif letter in partner:
                counts[partner[letter]] -= 1
                if counts[partner[letter]] < 0:
                    return False
    return not any(counts.values())
