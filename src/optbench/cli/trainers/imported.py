"""What all importers share: the settings that a training of another trainer becomes, and how.

Every option has a value, given or the trainer's own default. All that is not simply the same is
said: what has no equivalent, what was ignored, what was filled in.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf

from optbench.cli.trainers.options import Option
from optbench.errors import shorten
from optbench.optim.schedules import settings_in_use
from optbench.storage import resources

PLACEHOLDER_PROMPT = "a portrait"

_PLAIN_TEXT = re.compile(r"[\w./:\\+-]+( +[\w./:\\+-]+)*")
_OTHER_TYPE = re.compile(r"[-+.\d_]+(e[-+]?\d+)?|true|false|null|inf|nan", re.IGNORECASE)
_SHIPPED = {"dataset": "folder", "network": "lora", "train": "default", "loss": "default"}
# What shuffles or drops in conf/ and nowhere by itself in other trainers.
_OFF_ELSEWHERE: Mapping[str, Any] = {
    "dataset.shuffle_caption": False,
    "dataset.keep_tokens": 0,
    "train.clip_skip": 1,
    "train.max_grad_norm": 0.0,
    "train.gradient_accumulation": 1,
    "train.gradient_checkpointing": False,
    "optimizer.unet_lr": None,
    "optimizer.text_encoder_lr": None,
}


@dataclass(slots=True)
class Imported:
    """Overrides for a training, and what a person should know about them."""

    trainer: str = "kohya"  # the table's name
    overrides: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)  # why the command cannot be run as it is
    notes: list[str] = field(default_factory=list)  # what to look at before training
    lost: list[str] = field(default_factory=list)  # what has no equivalent
    ignored: list[str] = field(default_factory=list)  # what the trainer does not look at
    assumed: list[str] = field(default_factory=list)  # its own defaults that were written out
    not_needed: list[str] = field(default_factory=list)


class Translation:
    """One training on its way: `args` has every option's value, `given` those that were written."""

    def __init__(
        self, trainer: str, options: Mapping[str, Option], given: Mapping[str, Any]
    ) -> None:
        """Keep a trainer's options and what was given of them, which must all be among them."""
        self.imported = Imported(trainer=trainer)
        self._decided: set[str] = set()  # keys, written or left out because they are ours already
        self.options = options
        self.given = given
        self.args: dict[str, Any] = {
            name: option.default for name, option in options.items()
        } | dict(given)

    def _set(self, key: str, value: Any, *names: str) -> None:
        """Add an override; `names` are the options it comes from.

        Where none of them was given the value is the trainer's default: left out if it is ours
        too, else said.
        """
        override = f"{key}={hydra_value(value)}"
        self._decided.add(key)
        if not any(name in self.given for name in names):
            if _is_shipped(key, value):
                return
            self.imported.assumed.append(override)
        self.imported.overrides.append(override)

    def _same(self, *names: str) -> None:
        for name in names:
            value = self.args[name]
            self._set(
                self.options[name].ours, self.options[name].values.get(str(value), value), name
            )

    def _set_all_same(self) -> None:
        """Set everything that the table says is the same here, but for what is off or empty."""
        for name, option in self.options.items():
            if option.how == "same" and self.args[name] not in (None, ""):
                self._same(name)

    def _set_the_rest(self) -> None:
        """Set what is on in conf/ and off in a trainer without such an option."""
        finds_rates = "optimizer=adafactor_auto" in self.imported.overrides
        for key, value in _OFF_ELSEWHERE.items():
            has_none = finds_rates and key.startswith("optimizer.")
            if key not in self._decided and not has_none:
                self._set(key, value)
        self.imported.overrides.append("validate.holdout=none")

    def _ignore(self, name: str, why: str) -> None:
        if name in self.given and self.given[name] != self.options[name].default:
            self.imported.ignored.append(f"{name}={shown(self.given[name])}: {why}")

    def _lose(self, name: str, what: str) -> None:
        """Say of a given option what it would have done."""
        self.imported.lost.append(f"{name}={shown(self.args[name])}: {what}")

    def _set_optimizer(self, recipe: str, args: Mapping[str, Any], *, target: str = "") -> None:
        """Choose a recipe with these arguments of its class alone; others are the class's own."""
        overrides = self.imported.overrides
        overrides.append(f"optimizer={recipe}")
        if target:
            overrides += [
                f"optimizer._target_={target}",
                f"optimizer.name={target.rpartition('.')[2].lower()}",
            ]
        ours = shipped("optimizer", recipe)["args"]
        forced = {"nesterov", "momentum"} if recipe.startswith("sgdnesterov") else set()
        for name in ours:
            # Without it the class's own default holds, as there; fused computes the same faster.
            keeps = name in forced or (name == "fused" and not target)
            if name not in args and not keeps:
                overrides.append(f"~optimizer.args.{name}")
        for name, value in args.items():
            plus = "" if name in ours else "+"
            overrides.append(f"{plus}optimizer.args.{name}={from_literal(value)}")

    def _set_schedule(self, name: str, values: Mapping[str, Any], *names: str) -> None:
        """Choose a schedule with every setting it looks at; 0 and 1 are what a lacking one is."""
        self._set("lr_scheduler", name, *names)
        without = {"warmup_steps": 0, "num_cycles": 1, "power": 1.0, "min_lr_ratio": 0.0}
        for key in settings_in_use(name):
            if key in values or key in without:
                self._set(f"lr_scheduler.{key}", values.get(key, without.get(key)), *names)

    def _set_prompts(self, prompts: Sequence[tuple[str, str, int, int]], why_none: str) -> None:
        """Add prompts (text, negative, width, height), or a placeholder and a note of it."""
        if not prompts:
            self.imported.overrides.append(
                f"prompts.prompts.a.text={hydra_value(PLACEHOLDER_PROMPT)}"
            )
            self.imported.notes.append(
                f"prompts.prompts.a.text: {PLACEHOLDER_PROMPT!r} is a placeholder{why_none}; write "
                "what the LoRA is to show, or render=off"
            )
            return
        for number, (text, negative, width, height) in enumerate(prompts):
            name = chr(ord("a") + number) if number < 26 else f"p{number}"
            values = {"text": text, "negative": negative, "width": width, "height": height}
            if number == 0:
                self.imported.overrides += [
                    f"prompts.prompts.a.{key}={hydra_value(value)}" for key, value in values.items()
                ]
            else:
                inner = ",".join(f"{key}:{hydra_value(value)}" for key, value in values.items())
                self.imported.overrides.append(f"+prompts.prompts.{name}={{{inner}}}")

    def _say_others(self) -> None:
        """Say every given option that changes something and that nothing above has read."""
        by_remark: dict[str, list[str]] = {}
        for name, value in self.given.items():
            option = self.options[name]
            if value in (option.default, "", [], {}, None) or value is False:
                continue
            if option.how == "missing":
                remark = f"; {option.remark}" if option.remark else ""
                self.imported.lost.append(f"{name}={shown(value)}: {option.meaning}{remark}")
            elif option.how == "unneeded":
                by_remark.setdefault(option.remark, []).append(name)
        self.imported.not_needed += [
            f"{shorten(names)}: {remark}" for remark, names in by_remark.items()
        ]


def pairs(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield name and value of every `name=value`."""
    for word in words:
        name, _, value = word.partition("=")
        yield name.strip(), value.strip()


@functools.cache
def shipped(group: str, option: str) -> DictConfig:
    """Return a file of conf/ as it is written."""
    loaded = OmegaConf.load(resources.conf_dir() / group / f"{option}.yaml")
    assert isinstance(loaded, DictConfig)
    return loaded


def _is_shipped(key: str, value: object) -> bool:
    """Return whether a setting has this value where an imported command says nothing of it."""
    section, _, name = key.partition(".")
    if section not in _SHIPPED:
        return False
    ours = shipped(section, _SHIPPED[section])
    if name not in ours or OmegaConf.is_interpolation(ours, name):
        return False
    return bool(ours[name] == value)


def literal(text: Any) -> Any:
    """Return the value of a Python literal, or the text where it is none."""
    try:
        return ast.literal_eval(str(text))
    except (SyntaxError, ValueError):
        return text


def from_literal(text: Any) -> str:
    """Return a Python literal as Hydra's grammar spells it; what is none is left to Hydra."""
    if not isinstance(text, str):
        return hydra_value(text)
    value = literal(text)
    is_bare = value is text and _PLAIN_TEXT.fullmatch(text)
    return text if is_bare else hydra_value(value)


def hydra_value(value: Any) -> str:
    """Return a value as Hydra's grammar wants it, in quotes where it could mean something else."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(hydra_value(item) for item in value)}]"
    if isinstance(value, int | float):
        return repr(value)
    text = str(value)
    if _PLAIN_TEXT.fullmatch(text) and not _OTHER_TYPE.fullmatch(text):
        return text
    escaped = text.replace("'", r"\'").replace("${", r"\${")
    return f"'{escaped}'"


def shown(value: object) -> str:
    """Return a value for a sentence."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
