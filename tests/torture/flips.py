"""Flipped bits and cut-off files of every kind: noticed, set aside, made again, bit-identical."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from optbench.cli import verify
from optbench.storage.rundir import RunDir
from tests.torture.sweeps import Figures, Made, Workplace, command, differences, run_dirs

RUN = ("optimizer=adamw", "network.dim=2", "validate=default", "validate.num_pictures=1")
# Every kind of file below a sweep's place; one of each is taken at random for every try.
KINDS = (
    "runs/torture/*/state/last.pt",
    "runs/torture/*/lora/*-000001.safetensors",
    "runs/torture/*/lora/*-000003.safetensors",
    "runs/torture/*/steps.jsonl",
    "runs/torture/*/epochs.jsonl",
    "runs/torture/*/layers.jsonl",
    "runs/torture/*/files.jsonl",
    "runs/torture/*/validation.jsonl",
    "runs/torture/*/config.yaml",
    "runs/torture/*/status.json",
    "runs/torture/*/provenance.json",
    "runs/torture/*/validated-as.json",
    "runs/torture/*/images/rendered-as.json",
    "runs/torture/*/images/epoch-0002/*.png",
    "cache/base-pictures/*/*.png",
    "cache/latents/*.safetensors",
    "cache/base-losses/*.json",
    "cache/file-hashes.json",
)


def flip_campaign(workplace: Workplace, *, num_each: int, seed: int = 2) -> Figures:
    """Damage one file of a finished run and of a killed one, and make the run again."""
    draw = random.Random(seed)
    made = Made(workplace, "flipped", *RUN)
    place = made.place
    done, killed = workplace.root / "finished", workplace.root / "killed"
    losses: list[str] = []
    ended, whole = made.whole()
    # Killed in its last third, so that there are two states and pictures of some epochs.
    made.run(operations=int(ended.num_operations * 0.75))
    place.rename(killed)
    made.run()
    place.rename(done)
    num_tried = num_said = 0
    for kind in KINDS:
        for origin in (done, killed):
            for _ in range(num_each):
                shutil.rmtree(place, ignore_errors=True)
                shutil.copytree(origin, place)
                paths = sorted(place.glob(kind))
                if not paths:
                    continue
                num_tried += 1
                path = draw.choice(paths)
                damage = _damage(path, draw)
                found, is_said = _made_again(made, path, whole)
                num_said += is_said
                losses += [f"{damage} of {kind} ({origin.name}): {one}" for one in found]
        print(f"  {num_tried} flips and cuts, {len(losses)} losses", flush=True)
    what = f"in {len(KINDS)} kinds of files of finished and of killed runs; {num_said} named on "
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


def _made_again(made: Made, path: Path, whole: dict[str, object]) -> tuple[list[str], bool]:
    """Look for damage as a person would, run the same command, and compare."""
    place = made.place
    looked = command([str(place / "runs")], main=verify.main)
    ended = made.run()
    found = differences(place, whole)
    if ended.code != 0:
        found.append(f"exit {ended.code}: {ended.output[-800:]}")
    if command([str(place / "runs")], main=verify.main).code != 0:
        found.append("still damaged")
    said = looked.output + ended.output + "".join(map(_notices, run_dirs(place)))
    return found, path.name in said or path.suffix in said


def _notices(run: RunDir) -> str:
    return run.provenance_path.read_text(encoding="utf-8")
