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

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

STRONGER, WEAKER = 1.1, 1 / 1.1
_BREAK = re.compile(r"\s*\bBREAK\b\s*")
_AND = re.compile(r"\bAND\b")
_TOKEN = re.compile(
    r"""
    \\(?P<escaped>[()\[\]\\])
    | (?P<backslash>\\)
    | (?P<opened>[(\[])
    | :\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)
    | (?P<closed>[)\]])
    | (?P<text>[^\\()\[\]:]+|:)
    """,
    re.VERBOSE,
)
_WHEN = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*")
_TAG = re.compile(r"<(\w+):([^<>]+)>")
_STRENGTH = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)")
_MAX_NESTED = 50  # brackets inside one another; deeper ones are said to be a mistake
_NUMBER = re.compile(r":\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*[)\]>]")
_LARGEST = 1e6


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
        if token["opened"]:
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
        first, *others = _BREAK.split(text)
        section.append(Span(text=first, weight=weight))
        for other in others:
            yield section
            section = [Span(text=other, weight=weight)]
    yield section


def _joined(spans: Sequence[Span]) -> Section:
    """Return the spans with neighbours of one weight as one, for a tokenizer reads whole words."""
    joined: list[Span] = []
    for span in spans:
        if not span.text:
            continue
        if joined and joined[-1].weight == span.weight:
            span = Span(text=joined.pop().text + span.text, weight=span.weight)
        joined.append(span)
    return tuple(joined)


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
    plain, place = "", 0
    while place < len(text):
        if (end := ends.get(place)) is not None:
            content = text[place + 1 : end]
            if (part := _special(content, depth + 1)) is not None:
                parts += [plain, part] if plain else [part]
                plain = ""
            else:
                # Plain brackets may still hold special ones.
                first, *others = _parts(content, depth + 1) or ("",)
                if not others and isinstance(first, str):
                    plain += f"[{first}]"
                else:
                    parts += [f"{plain}[", first, *others]
                    plain = "]"
            place = end + 1
            continue
        width = 2 if text[place] == "\\" else 1
        plain += text[place : place + width]
        place += width
    return (*parts, plain) if plain else tuple(parts)


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
    pieces, depth, place = [""], 0, 0
    while place < len(content):
        letter = content[place]
        if tag := _TAG.match(content, place):
            pieces[-1] += tag[0]
            place = tag.end()
            continue
        if letter == "\\":
            pieces[-1] += content[place : place + 2]
            place += 2
            continue
        depth += (letter in "([") - (letter in ")]" and depth > 0)
        if letter == mark and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += letter
        place += 1
    return pieces


def _ends(text: str) -> dict[int, int]:
    """Return where every square bracket ends, by where it opens; those without an end are not."""
    ends: dict[int, int] = {}
    opened: list[int] = []
    place = 0
    while place < len(text):
        if text[place] == "\\":
            place += 1
        elif text[place] == "[":
            opened.append(place)
        elif text[place] == "]" and opened:
            ends[opened.pop()] = place
        place += 1
    return ends


def _deepest(text: str) -> int:
    """Return how many round and square brackets are inside one another at most."""
    depth = deepest = 0
    for token in _TOKEN.finditer(text):
        depth += bool(token["opened"])
        depth = max(0, depth - bool(token["closed"] or token["weight"]))
        deepest = max(deepest, depth)
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
            complaints.append(
                f"[{content}], which both alternates and edits; put one inside the other"
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
