"""Flipped bits and cut-off files of every kind: noticed, set aside, made again, bit-identical."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from tests.torture import faults
from tests.torture.commands import (
    Commands,
    Figures,
    Undisturbed,
    Workplace,
    differences,
    every_kind,
    run,
    undisturbed,
    verification,
)
from tests.torture.faults import Fault

# Every kind of file below a place, and which of its commands makes it again (by its index).
KINDS = {
    "runs/torture/*/state/last.pt": 0,
    "runs/torture/*/lora/*-000001.safetensors": 0,
    "runs/torture/*/lora/*-000002.safetensors": 0,
    "runs/torture/*/steps.jsonl": 0,
    "runs/torture/*/epochs.jsonl": 0,
    "runs/torture/*/layers.jsonl": 0,
    "runs/torture/*/files.jsonl": 0,
    "runs/torture/*/validation.jsonl": 0,
    "runs/torture/*/metrics.jsonl": 0,
    "runs/torture/*/config.yaml": 0,
    "runs/torture/*/status.json": 0,
    "runs/torture/*/provenance.json": 0,
    "runs/torture/*/validated-as.json": 0,
    "runs/torture/*/images/rendered-as.json": 0,
    "runs/torture/*/images/epoch-0002/*.png": 0,
    "runs/torture/*/claims/*.json": 0,
    "cache/base-pictures/*/*.png": 0,
    "cache/latents/*.safetensors": 0,
    "cache/base-losses/*.json": 0,
    "cache/file-hashes.json": 0,
    "renders/cells/*.png": 1,
    "renders/plots/*/plot.json": 1,
    "renders/plots/*/status.json": 1,
    "runs/resized/*/lora/*.safetensors": 2,
    "runs/resized/*/likeness.jsonl": 2,
    "runs/resized/*/epochs.jsonl": 2,
    "runs/resized/*/layers.jsonl": 2,
    "runs/resized/*/files.jsonl": 2,
    "runs/resized/*/validation.jsonl": 2,
    "runs/resized/*/config.yaml": 2,
    "runs/resized/*/claims/*.json": 2,
    "classes/*/*.png": 3,
    "classes/.regularize/*/status.json": 3,
}


def flip_campaign(workplace: Workplace, *, lora: Path, num_each: int, seed: int = 2) -> Figures:
    """Damage one file of finished commands and of a killed training, and give the command again."""
    draw = random.Random(seed)
    place = workplace.root / "flipped"
    done, killed = workplace.root / "finished", workplace.root / "killed"
    commands = every_kind(workplace, place, lora=lora)
    whole = undisturbed(place, commands)
    run(place, commands)
    shutil.copytree(place, done)
    shutil.rmtree(place)
    training = undisturbed(place, commands[:1])
    # Killed in its second run, so that one is whole and of one there are images of some epochs.
    origins = [(done, whole)]
    if faults.is_loaded():
        at = int(training.ended.num_operations * 0.55)
        run(place, commands[:1], fault=Fault(action="kill", at=at))
        place.rename(killed)
        origins.append((killed, training))
    losses: list[str] = []
    num_tried = num_said = 0
    for kind, index in KINDS.items():
        for origin, expected in origins:
            for _ in range(num_each):
                shutil.rmtree(place, ignore_errors=True)
                shutil.copytree(origin, place)
                paths = [path for path in sorted(place.glob(kind)) if path.stat().st_size]
                if not paths:
                    if origin == done:
                        losses.append(f"{kind}: no such file, so it was not tried")
                    continue
                num_tried += 1
                path = draw.choice(paths)
                damage = _damage(path, draw)
                new, is_said = _made_again(expected, [commands[index]], path)
                num_said += is_said
                losses += [f"{damage} of {kind} ({origin.name}): {loss}" for loss in new]
        print(f"  {num_tried} flips and cuts, {kind}, {losses[-2:]}", flush=True)
    what = (
        f"in {len(KINDS)} kinds of files of finished and of killed commands; {num_said} named on "
    )
    what += "screen or in the run's notices, the others in files that every start writes anew"
    return Figures(name="bit flips and cuts", num_tried=num_tried, what=what, losses=tuple(losses))


def _damage(path: Path, draw: random.Random) -> str:
    content = bytearray(path.read_bytes())
    # Links: the same bytes under two names are two files to a person.
    path.unlink()
    if draw.random() < 0.25:
        length = draw.randrange(len(content))
        path.write_bytes(content[:length])
        return f"cut at byte {length}"
    place, bit = draw.randrange(len(content)), draw.randrange(8)
    content[place] ^= 1 << bit
    path.write_bytes(content)
    return f"bit {bit} of byte {place}"


def _made_again(expected: Undisturbed, commands: Commands, path: Path) -> tuple[list[str], bool]:
    """Look for damage as a person would, give the same command again, and compare."""
    place = expected.place
    looked = run(place, [verification(place)])
    ended = run(place, commands)
    losses = [*looked.complaints(), *ended.complaints(), *differences(place, expected.results)]
    if ended.code != 0:
        losses.append(f"exit {ended.code}: {ended.output[-800:]}")
    after = run(place, [verification(place)])
    if after.code != 0:
        losses.append(f"still damaged: {after.output[-400:]}")
    said = looked.output + ended.output
    said += "".join(file.read_text() for file in place.glob("runs/*/*/provenance.json"))
    return losses, path.name in said or path.suffix in said
