"""`python -m tools.tinybase`: pre-train the embedded base, measure it, make its data sets."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from optbench.storage import resources

_NEEDED = ("skia", "tokenizers")


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code after making what was asked for: 0, or 2 when packages are missing."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"found no package {' and no package '.join(missing)}; drawing needs them.\n"
            "-> pip install -c constraints.txt -e '.[tiny]'",
            file=sys.stderr,
        )
        return 2
    asked = _parser().parse_args(argv)
    if asked.what == "character":
        from tools.tinybase.mirelle_set import write_mirelle

        num_bytes = write_mirelle(asked.out, seed=asked.seed, num_pictures=asked.num_pictures)
        print(f"{asked.num_pictures} pictures, {num_bytes / 1e6:.2f} MB, in {asked.out}")
        return 0
    if asked.what == "validation":
        from tools.tinybase.validation_set import write_validation

        print(f"{write_validation(asked.out) / 1e6:.2f} MB in {asked.out}")
        return 0
    if asked.what == "resemblance":
        _resemblance(asked)
        return 0
    if asked.what == "reader":
        _reader(asked)
        return 0
    if asked.what == "evaluate":
        _evaluate(asked)
        return 0
    from tools.tinybase.pretrain import Budget, pretrain

    budget = Budget(**{field.name: getattr(asked, field.name) for field in fields(Budget)})
    pretrain(asked.work, asked.out, seed=asked.seed, budget=budget)
    print(asked.out)
    return 0


def _evaluate(asked: argparse.Namespace) -> None:
    """Measure the base and print the numbers of docs/embedded-base.md."""
    from tools.tinybase.evaluate import evaluate

    found = evaluate(
        asked.work,
        asked.base,
        asked.sheet,
        seed=asked.seed,
        num_drawings=asked.num_drawings,
        num_prompts=asked.num_prompts,
    )
    print(f"autoencoder, held-out drawings       PSNR {found.psnr:.1f} dB")
    print(f"image encoder, mirelle among others  rank {found.own_rank:.1%}")
    rows = [("judge on held-out drawings", found.judge, found.clipped_drawings)]
    rows += [
        (f"base, {found.num_prompts} unseen prompts, {one.condition}", one.right, one.clipped)
        for one in found.obedience
    ]
    for title, right, clipped in rows:
        shares = "  ".join(f"{name} {share:.1%}" for name, share in right.items())
        print(f"{title:<50} {shares}  clipped {clipped:.1%}")
    print(asked.sheet)


def _reader(asked: argparse.Namespace) -> None:
    """Train what optbench.metrics reads pictures of the base with."""
    from tools.tinybase.autoencoder import fit_codes
    from tools.tinybase.drawings import make_drawings
    from tools.tinybase.reader import make_reader

    codes = fit_codes(asked.work, seed=asked.seed)
    drawings = make_drawings(asked.work, codes, seed=asked.seed, num_drawings=asked.num_drawings)
    found = make_reader(
        asked.work, asked.base, asked.out, drawings, seed=asked.seed, num_steps=asked.num_steps
    )
    for name, share in found.items():
        print(f"{name:<16} right {share:.1%}")
    print(asked.out)


def _resemblance(asked: argparse.Namespace) -> None:
    """Print how much pictures look like the character, as the base's image encoder sees it."""
    from PIL import Image

    from tools.tinybase.resemblance import NUM_OTHERS, Resemblance

    own = [Image.open(path) for path in sorted(asked.character.rglob("*.webp"))]
    pictures = [Image.open(path) for path in asked.pictures]
    ranks = Resemblance(asked.base, own, seed=asked.seed, num_others=NUM_OTHERS).ranks(pictures)
    print(f"share of {NUM_OTHERS} random inhabitants who look less like {asked.character.name}:")
    for path, rank in zip(asked.pictures, ranks, strict=True):
        print(f"{rank:>6.1%}  {path}")


def _parser() -> argparse.ArgumentParser:
    from tools.tinybase.pretrain import Budget

    parser = argparse.ArgumentParser(prog="python -m tools.tinybase", description=__doc__)
    commands = parser.add_subparsers(dest="what", required=True)
    weights = commands.add_parser("pretrain", help="train the base; goes on after a kill")
    weights.add_argument("--work", type=Path, default=Path("tiny-work"), help="checkpoints")
    weights.add_argument("--out", type=Path, default=resources.asset("tiny"))
    weights.add_argument("--seed", type=int, default=0)
    for field in fields(Budget):
        flag = "--" + field.name.replace("_", "-")
        weights.add_argument(flag, type=int, default=field.default, dest=field.name)
    measured = commands.add_parser("evaluate", help="measure the base: PSNR and obedience")
    measured.add_argument("--work", type=Path, default=Path("tiny-work"), help="of pretrain")
    measured.add_argument("--base", type=Path, default=resources.asset("tiny"))
    measured.add_argument("--sheet", type=Path, default=Path("embedded-base.png"))
    measured.add_argument("--seed", type=int, default=0)
    measured.add_argument("--num-drawings", type=int, default=Budget().num_drawings)
    measured.add_argument("--num-prompts", type=int, default=200)
    reader = commands.add_parser("reader", help="train what optbench.metrics reads pictures with")
    reader.add_argument("--work", type=Path, default=Path("tiny-work"), help="of pretrain")
    reader.add_argument("--base", type=Path, default=resources.asset("tiny"))
    reader.add_argument("--out", type=Path, default=resources.asset("tiny-reader") / "reader.json")
    reader.add_argument("--seed", type=int, default=0)
    reader.add_argument("--num-drawings", type=int, default=Budget().num_drawings)
    reader.add_argument("--num-steps", type=int, default=3_000)
    similar = commands.add_parser("resemblance", help="rank pictures by likeness to the character")
    similar.add_argument("pictures", type=Path, nargs="+")
    similar.add_argument("--base", type=Path, default=resources.asset("tiny"))
    similar.add_argument("--character", type=Path, default=resources.asset("mirelle"))
    similar.add_argument("--seed", type=int, default=0)
    character = commands.add_parser("character", help="draw the character's pictures")
    character.add_argument("--out", type=Path, default=resources.asset("mirelle"))
    character.add_argument("--seed", type=int, default=0)
    character.add_argument("--num-pictures", type=int, default=24)
    validation = commands.add_parser("validation", help="draw what LoRAs of her are validated on")
    validation.add_argument("--out", type=Path, default=resources.asset("validation"))
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
