"""The options of other trainers as data: types, defaults, and what each one is here.

`tables/NAME.csv` holds one trainer's; `READ_AT` says of which version. Import, export, the pages
in docs/ and the hints on the command line read them.
"""

from __future__ import annotations

import ast
import csv
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

How = Literal["same", "read", "unneeded", "missing"]

READ_AT: Mapping[str, tuple[str, str]] = {  # table -> name in sentences, version it was read at
    "kohya": ("kohya's trainer", "sd-scripts 48d368fa, 2026-02-16"),
    "kohya-gui": ("kohya_ss", "45088f04, 2026-07-10"),
    "lora-easy": ("LoRA_Easy_Training_Scripts", "ae5ce073, 2025-04-21"),
    "musubi": ("musubi-tuner", "30c658c4, 2026-06-24"),
    "onetrainer": ("OneTrainer", "23df3832, 2026-08-19"),
    "ai-toolkit": ("ai-toolkit", "27a03a91, 2026-08-21"),
    "simpletuner": ("SimpleTuner", "bc8e6ab7, 2026-08-22"),
    "diffusion-pipe": ("diffusion-pipe", "8f83dbf2, 2026-08-20"),
    "peft": ("PEFT's comparison", "5d602fdb, 2026-08-21"),
    "diffusers": ("diffusers' scripts", "58eb52c8, 2026-08-23"),
}


@dataclass(frozen=True, slots=True)
class Option:
    """One option of another trainer.

    `how` says what it is here: `same` (the setting `ours` holds the same value, or the one that
    `values` gives for it), `read` (worked out from several options or settings), `unneeded`
    (changes no weight, or always so here) and `missing` (changes weights, and is not here).
    """

    name: str  # nested ones with dots: train.lr
    type: str  # str, int, float, flag, bool, length (steps or a share), strs, floats, list, table
    default: Any
    choices: tuple[str, ...]
    ours: str
    how: How
    values: Mapping[str, str]  # their value -> ours, where the words differ
    meaning: str
    remark: str
    since: str  # the version that brought it; empty: older than the one the table was read at

    def parse(self, value: object) -> Any:
        """Return a typed or written value as the trainer's own parser would.

        Raises:
            ValueError: If it is none of this type.
        """
        if value is None or self.type == "any":
            return value
        if self.type in ("list", "table"):
            if not isinstance(value, list | tuple if self.type == "list" else Mapping):
                raise ValueError(f"{value!r} for a {self.type}")
            return value
        if self.type in ("strs", "floats"):
            values = value if isinstance(value, list | tuple) else [value]
            return [float(str(item)) if self.type == "floats" else str(item) for item in values]
        if isinstance(value, list | tuple | dict):
            raise ValueError(f"several values: {value}")
        if self.type in ("flag", "bool"):
            if str(value).lower() not in ("true", "false"):
                raise ValueError(f"{value!r} for a flag, which is true or false")
            return str(value).lower() == "true"
        if self.type in ("str", "enum"):
            return str(value)
        if self.type == "int":
            if isinstance(value, float) and not value.is_integer():
                raise ValueError(f"{value} for a whole number")
            return int(value) if isinstance(value, int | float) else int(str(value))
        if self.type == "float":
            return float(str(value))
        # A written 0.1 or 10% is a share and 100 are steps; in TOML the number's type decides.
        if isinstance(value, int | float):
            return value
        text = str(value)
        if text.endswith("%"):
            return float(text[:-1]) / 100
        number = float(text)
        return number if number < 1 and number != 0 else int(number)


@functools.cache
def table(name: str) -> Mapping[str, Option]:
    """Return every option of a trainer by its name, in the order of its own parser."""
    file = resources.files(__package__).joinpath("tables", f"{name}.csv")
    rows = csv.DictReader(file.read_text(encoding="utf-8").splitlines())
    return {
        row["option"]: Option(
            name=row["option"],
            type=row["type"],
            default=ast.literal_eval(row["default"]) if row["default"] else None,
            choices=tuple(row["choices"].split("|")) if row["choices"] else (),
            ours=row["ours"],
            how=row["how"],  # type: ignore[arg-type]
            values=dict(pair.split("=") for pair in row["values"].split("|") if pair),
            meaning=row["meaning"],
            remark=row["remark"],
            since=row["since"],
        )
        for row in rows
    }


def options() -> Mapping[str, Option]:
    """Return kohya's options by name, in the order of the trainer's own help."""
    return table("kohya")


def full_name(name: str, known: Mapping[str, Option] | None = None) -> str | Sequence[str]:
    """Return the option that a name or the beginning of one means, or all it could mean.

    Args:
        name: Without the dashes.
        known: The trainer's options; None: kohya's.
    """
    known = options() if known is None else known
    if name in known:
        return name
    near = [option for option in known if option.startswith(name)]
    return near[0] if len(near) == 1 else near
