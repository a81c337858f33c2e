"""The options of kohya's trainer as data: types, defaults, and what each one is here.

`options.csv` lists every option of sd-scripts' `train_network.py` and `sdxl_train_network.py` at
commit 48d368fa. Import, export and docs/kohya-names.md read it.
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


@dataclass(frozen=True, slots=True)
class Option:
    """One option of kohya's trainer.

    `how` says what it is here: `same` (the setting `ours` holds the same value), `read` (worked
    out from several options or settings), `unneeded` (changes no weight, or always so here) and
    `missing` (changes weights, and is not here).
    """

    name: str
    type: str  # str, int, float, flag, length (steps or a share), strs, floats
    default: Any
    choices: tuple[str, ...]
    ours: str
    how: How
    meaning: str
    remark: str

    def parse(self, value: object) -> Any:
        """Return a typed or written value as the trainer's own parser would.

        Raises:
            ValueError: If it is none of this type.
        """
        if self.type in ("strs", "floats"):
            values = value if isinstance(value, list | tuple) else [value]
            return [float(str(item)) if self.type == "floats" else str(item) for item in values]
        if isinstance(value, list | tuple):
            raise ValueError(f"several values: {value}")
        if self.type == "flag":
            if str(value).lower() not in ("true", "false"):
                raise ValueError(f"{value!r} for a flag, which takes no value")
            return str(value).lower() == "true"
        if self.type == "str":
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
def options() -> Mapping[str, Option]:
    """Return every option by its name, in the order of the trainer's own help."""
    file = resources.files(__package__).joinpath("options.csv")
    rows = csv.DictReader(file.read_text(encoding="utf-8").splitlines())
    return {
        row["option"]: Option(
            name=row["option"],
            type=row["type"],
            default=ast.literal_eval(row["default"]) if row["default"] else None,
            choices=tuple(row["choices"].split("|")) if row["choices"] else (),
            ours=row["ours"],
            how=row["how"],  # type: ignore[arg-type]
            meaning=row["meaning"],
            remark=row["remark"],
        )
        for row in rows
    }


def full_name(name: str) -> str | Sequence[str]:
    """Return the option that a name or the beginning of one means, or all it could mean."""
    if name in options():
        return name
    near = [option for option in options() if option.startswith(name)]
    return near[0] if len(near) == 1 else near
