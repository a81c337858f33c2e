"""Read a command line or TOML file of kohya's trainer as overrides of ours."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from optbench.cli.kohya import option_names
from optbench.errors import ConfigError, Problem
from optbench.storage import resources
from optbench.storage.disk import read_text

_LISTS = ("network_args", "optimizer_args", "lr_scheduler_args")
_SCRIPT = re.compile(r"(?P<family>sdxl_|)train_network(\.py)?$")
_CONTINUED = re.compile(r"[\\^`][ \t]*\r?\n")
_PLAIN_TEXT = re.compile(r"[\w./:\\+-]+( +[\w./:\\+-]+)*")
_WINDOWS_PATH = re.compile(r"\b[A-Za-z]:\\")
_UNET, _TEXT = "network_train_unet_only", "network_train_text_encoder_only"
_READ_APART = (
    *("resolution", "optimizer_type", "use_8bit_adam", "use_lion_optimizer", "learning_rate"),
    *("unet_lr", "text_encoder_lr", "lr_scheduler", "max_train_epochs", "max_train_steps"),
    *("v2", "v_parameterization", "max_token_length", "network_module", _UNET, _TEXT, *_LISTS),
    *("log_with", *option_names.TRACKER_VALUES),
)
_LOSS = (*option_names.LOSS_VALUES, *option_names.LOSS_FLAGS)
_MANY_EPOCHS = 1_000_000  # where steps alone decide


@dataclass(slots=True)
class Imported:
    """Overrides for a training, and what a person should know about them."""

    overrides: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)  # what has no equivalent
    assumed: list[str] = field(default_factory=list)  # kohya's own defaults that were written out
    not_needed: list[str] = field(default_factory=list)


def read_options(path: Path) -> dict[str, Any]:
    """Return the options of a shell script, a batch file or a TOML file, by kohya's names.

    Raises:
        ConfigError: If it cannot be read, or holds no option.
    """
    try:
        text = read_text(path, encoding="utf-8-sig")
        options = _from_toml(text) if path.suffix == ".toml" else _from_command(text)
    except FileNotFoundError as error:
        raise _unreadable(path, "no such file") from error
    except (OSError, ValueError) as error:
        raise _unreadable(path, f"{type(error).__name__}: {error}") from error
    if not options:
        raise _unreadable(path, "no option of kohya's trainer")
    return options


def convert(options: Mapping[str, Any]) -> Imported:
    """Return what the options mean here.

    What the options leave out is written out as kohya's trainer would take it, because the
    defaults differ.
    """
    imported = Imported()
    args = dict(options)
    for name, value in option_names.DEFAULTS.items():
        is_other_length = name == "max_train_steps" and "max_train_epochs" in args
        if name not in args and value is not None and not is_other_length:
            args[name] = value
            imported.assumed.append(f"{name}={value}")
    family = "sdxl" if args.pop("sdxl", False) else "sd2" if args.get("v2") else "sd15"
    imported.overrides += [
        f"base={family}",
        "dataset=folder",
        "prompts=folder",
        "validate.holdout=none",  # kohya's trainer trains on every image
        *_plain(args),
        *_loss(args, imported),
        *_network(args, imported),
        *_optimizer(args, imported),
        *_schedule(args, imported),
        *_trackers(args, imported),
    ]
    for name, value in options.items():
        if name in option_names.NOT_NEEDED:
            imported.not_needed.append(f"{name}: {option_names.NOT_NEEDED[name]}")
        elif name not in (
            *option_names.VALUES,
            *option_names.FLAGS,
            *option_names.DROPOUTS,
            *_LOSS,
            *_READ_APART,
        ):
            imported.lost.append(f"{name}={value}")
    return imported


def _from_toml(text: str) -> dict[str, Any]:
    """Return a TOML file's keys, whatever tables they stand in."""
    flat: dict[str, Any] = {}
    for key, value in tomllib.loads(text).items():
        flat.update(value if isinstance(value, dict) else {key: value})
    return flat


def _from_command(text: str) -> dict[str, Any]:
    """Return the options of the line that starts the trainer, or of a bare list of options."""
    lines = [line for line in _CONTINUED.sub(" ", text).splitlines() if "--" in line]
    starting = [line for line in lines if "train_network" in line] or lines
    options: dict[str, Any] = {}
    name = ""
    for word in _words(starting[0]) if starting else ():
        if word.startswith("--"):
            name, equals, value = word.removeprefix("--").partition("=")
            options[name] = value if equals else [] if name in _LISTS else True
            if equals and name in _LISTS:
                options[name] = [value]
        elif name in _LISTS:
            options[name].append(word)
        elif name and options[name] is True:
            options[name] = word
        elif match := _SCRIPT.search(word):
            options["sdxl"] = bool(match["family"])
    if not options.pop("sdxl", False):
        return options
    return {**options, "sdxl": True}


def _words(line: str) -> list[str]:
    """Return a command's words; in one with Windows paths a backslash is only itself."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.commenters = True, ""
    if _WINDOWS_PATH.search(line):
        lexer.escape = ""
    return list(lexer)


def _plain(args: Mapping[str, Any]) -> Iterator[str]:
    # There a size beside dim_from_weights is ignored; here it is refused.
    ignored = ("network_dim", "network_alpha") if _is_on(args.get("dim_from_weights")) else ()
    for kohya, ours in option_names.VALUES.items():
        if kohya in args and kohya not in ignored and not ours.startswith("lr_scheduler."):
            yield f"{ours}={_value(args[kohya])}"
    for kohya, ours in option_names.FLAGS.items():
        yield f"{ours}={str(_is_on(args.get(kohya, False))).lower()}"
    if args.get("max_token_length"):
        yield f"train.max_token_length={args['max_token_length']}"
    for kohya, ours in option_names.DROPOUTS.items():
        if kohya in args:
            yield f"{ours}={args[kohya]}"
    sides = str(args["resolution"]).strip("[]()").replace(" ", "").split(",")
    yield f"dataset.resolution=[{sides[0]},{sides[-1]}]"
    if "max_train_epochs" in args:  # wins over steps there too
        yield f"train.epochs={args['max_train_epochs']}"
    else:
        yield f"train.max_steps={args['max_train_steps']}"
        yield f"train.epochs={min(_MANY_EPOCHS, int(args['max_train_steps']))}"


def _loss(args: Mapping[str, Any], imported: Imported) -> Iterator[str]:
    """Yield loss and noise without what the other trainer would not look at."""
    known = {**option_names.LOSS_VALUES, **option_names.LOSS_FLAGS}
    given = {name: args[name] for name in known if name in args}
    for name, value in given.items():
        if name in option_names.LOSS_FLAGS and not _is_on(value):
            continue
        if name in option_names.LOSS_OFF_AT_ZERO and not float(value):
            imported.not_needed.append(f"{name}: {value} is none there")
        elif name == "prior_loss_weight" and "reg_data_dir" not in args:
            imported.not_needed.append(f"{name}: without reg_data_dir it is not looked at there")
        elif needed := _lacks(name, given):
            imported.not_needed.append(f"{name}: without {needed} it is not looked at there")
        else:
            yield f"{known[name]}={_value(value)}"


def _lacks(name: str, given: Mapping[str, Any]) -> str:
    """Return the option that is needed for this one to have an effect and is not given, or ''."""
    if name not in option_names.LOSS_NEEDS:
        return ""
    needed, choices = option_names.LOSS_NEEDS[name]
    value = given.get(needed, 0)
    is_there = str(value) in choices if choices else bool(float(value))
    return "" if is_there and not _lacks(needed, given) else needed


def _trackers(args: Mapping[str, Any], imported: Imported) -> Iterator[str]:
    """Yield the tracker and its names; `all` there is TensorBoard and W&B."""
    kind = args.get("log_with")
    if kind in ("wandb", "all"):
        yield "tracker.log_with=[wandb]"
    elif kind is not None:
        known = kind == "tensorboard"
        note = "TensorBoard's files are always in the run's folder"
        (imported.not_needed if known else imported.lost).append(
            f"log_with: {note}" if known else f"log_with={kind}"
        )
    for kohya, ours in option_names.TRACKER_VALUES.items():
        if kohya in args and kind in ("wandb", "all"):
            yield f"{ours}={_value(args[kohya])}"
        elif kohya in args:
            imported.not_needed.append(f"{kohya}: without wandb there is nothing to name")


def _network(args: Mapping[str, Any], imported: Imported) -> Iterator[str]:
    given = dict(_pairs(args.get("network_args", ())))
    if "conv_dim" in given:
        given.setdefault("conv_alpha", "1.0")  # kohya's default
    for name, value in given.items():
        if name not in option_names.NETWORK_ARGS:
            imported.lost.append(f"network_args {name}={value}")
            continue
        is_list = "," in value and ("block" in name or name.endswith("_lr_weight"))
        yield f"{option_names.NETWORK_ARGS[name]}={f'[{value}]' if is_list else value}"
    if args.get("network_module", "networks.lora") != "networks.lora":
        imported.lost.append(f"network_module={args['network_module']}: another kind of network")
    if _is_on(args.get(_UNET, False)) or _rate(args, "text_encoder_lr") == 0:
        yield "network.train_text_encoder=false"
    if _is_on(args.get(_TEXT, False)) or _rate(args, "unet_lr") == 0:
        yield "network.train_unet=false"


def _optimizer(args: Mapping[str, Any], imported: Imported) -> Iterator[str]:
    optimizer_type = str(args["optimizer_type"])
    if _is_on(args.get("use_8bit_adam", False)):
        optimizer_type = "AdamW8bit"
    if _is_on(args.get("use_lion_optimizer", False)):
        optimizer_type = "Lion"
    given = dict(_pairs(args.get("optimizer_args", ())))
    recipe = _recipe(optimizer_type)
    if recipe == "adafactor" and given.get("relative_step", "True") == "True":
        recipe = "adafactor_auto"
    if recipe is None:
        imported.lost.append(
            f"optimizer_type={optimizer_type}: no recipe of ours builds it; copy one of "
            "conf/optimizer/ and name the class in it"
        )
        return
    yield f"optimizer={recipe}"
    shipped_args = _shipped("optimizer", recipe)["args"]
    forced = {"nesterov", "momentum"} if recipe.startswith("sgdnesterov") else set()
    for name in shipped_args:
        # Without it the class's own default holds, as there; fused is a way to compute the same.
        if name not in given and name not in forced | {"fused"}:
            yield f"~optimizer.args.{name}"
    for name, value in given.items():
        plus = "" if name in shipped_args else "+"
        yield f"{plus}optimizer.args.{name}={_hydra(value)}"
    if recipe != "adafactor_auto":
        yield f"optimizer.lr={args['learning_rate']}"
        for name in ("unet_lr", "text_encoder_lr"):
            rate = _rate(args, name)
            yield f"optimizer.{name}={'null' if not rate else args[name]}"


def _recipe(optimizer_type: str) -> str | None:
    if optimizer_type.lower() in option_names.RECIPES:
        return option_names.RECIPES[optimizer_type.lower()]
    for file in sorted((resources.conf_dir() / "optimizer").glob("*.yaml")):
        recipe = _shipped("optimizer", file.stem)
        if recipe.get("_target_") in (optimizer_type, f"torch.optim.{optimizer_type}"):
            return str(recipe["name"])
    return None


def _schedule(args: Mapping[str, Any], imported: Imported) -> Iterator[str]:
    ours_by_kohya = {kohya: ours for ours, kohya in option_names.SCHEDULES.items()}
    name = ours_by_kohya.get(str(args["lr_scheduler"]))
    if name is None:
        imported.lost.append(f"lr_scheduler={args['lr_scheduler']}: no such schedule here")
        return
    yield f"lr_scheduler={name}"
    shipped = _shipped("lr_scheduler", name)
    for option, ours in option_names.VALUES.items():
        key = ours.removeprefix("lr_scheduler.")
        # What this schedule has no use for is ignored there and refused here.
        if ours.startswith("lr_scheduler.") and option in args:
            if shipped.get(key) is not None:
                length = str(args[option])
                if length.endswith("%"):  # as kohya writes a share of the steps
                    length = f"{float(length[:-1]) / 100:g}"
                yield f"{ours}={length}"
            else:
                imported.lost.append(f"{option}={args[option]}: {name} has no use for it")
    if name == "polynomial":
        share = option_names.SMALLEST_POLYNOMIAL_RATE / float(args["learning_rate"])
        yield f"lr_scheduler.min_lr_ratio={share:g}"
    for key, value in _pairs(args.get("lr_scheduler_args", ())):
        if key == "step_rules":
            quoted = value.strip("'\"")
            yield f'lr_scheduler.step_rules="{quoted}"'
        else:
            imported.lost.append(f"lr_scheduler_args {key}={value}")


def _shipped(group: str, option: str) -> DictConfig:
    loaded = OmegaConf.load(resources.conf_dir() / group / f"{option}.yaml")
    assert isinstance(loaded, DictConfig)
    return loaded


def _pairs(words: Sequence[str] | str) -> Iterator[tuple[str, str]]:
    for word in [words] if isinstance(words, str) else words:
        name, _, value = str(word).partition("=")
        yield name.strip(), value.strip()


def _hydra(text: str) -> str:
    """Return a Python literal as Hydra's grammar spells it."""
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
    if isinstance(value, list | tuple):
        return f"[{','.join(_hydra(repr(item)) for item in value)}]"
    return _value(value)


def _value(value: Any) -> str:
    """Return a value as Hydra's grammar wants it, in quotes where it could mean something else."""
    if value is None:
        return "null"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if _PLAIN_TEXT.fullmatch(text):
        return text
    escaped = text.replace("'", r"\'").replace("${", r"\${")
    return f"'{escaped}'"


def _is_on(value: Any) -> bool:
    return value is True or str(value).lower() == "true"


def _rate(args: Mapping[str, Any], name: str) -> float | None:
    return None if args.get(name) is None else float(args[name])


def _unreadable(path: Path, found: str) -> ConfigError:
    return ConfigError(
        Problem(
            str(path),
            found,
            "kohya's command line (train_network.py --option=value ...), or its TOML file",
            "copy the command you train with into a file, and name that file",
        )
    )
