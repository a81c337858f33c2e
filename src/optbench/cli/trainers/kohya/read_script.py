"""Read options of kohya's trainer out of shell, batch and PowerShell scripts, TOML and JSON."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from optbench.cli.trainers.folders import ImageFolder
from optbench.cli.trainers.options import Option, full_name, options, table
from optbench.errors import ConfigError, Problem, shorten
from optbench.storage.disk import read_text

Shell = Literal["sh", "batch", "powershell"]

_SCRIPT = re.compile(
    r"(?:^|[\\/])(?P<family>(?:sdxl|flux|sd3|lumina|anima|hunyuan_image)_|)train_network(\.py)?$"
)
_WINDOWS_PATH = re.compile(r"(?<![\w/])[A-Za-z]:\\")
_CONTINUED: Mapping[Shell, re.Pattern[str]] = {
    "sh": re.compile(r"[\\^`][ \t]*\n"),  # lists of options are pasted from every shell
    "batch": re.compile(r"\^[ \t]*\n"),
    "powershell": re.compile(r"`[ \t]*\n"),
}
_ESCAPE: Mapping[Shell, str] = {"sh": "\\", "batch": "^", "powershell": "`"}
_COMMENT: Mapping[Shell, re.Pattern[str]] = {
    "sh": re.compile(r"\s*#"),
    "batch": re.compile(r"\s*(@?rem\b|::)", re.IGNORECASE),
    "powershell": re.compile(r"\s*#"),
}
_ASSIGNED: Mapping[Shell, re.Pattern[str]] = {
    "sh": re.compile(r"\s*(?:(?:export|readonly|local|declare)\s+(?:-\w+\s+)*)?(\w+)=(.*)", re.S),
    "batch": re.compile(r'\s*@?set\s+(?:/[aApP]\s+)?"?(\w+)=([^"\n]*)"?\s*$', re.IGNORECASE),
    "powershell": re.compile(r"\s*(?:\[[\w.]+\]\s*)?\$(?:env:)?(\w+)\s*=\s*(.*)", re.I | re.S),
}
_VARIABLE: Mapping[Shell, re.Pattern[str]] = {
    "sh": re.compile(
        r"\$(?:(?P<name>\w+)|(?P<rest>[@*])"
        r"|\{(?P<braced>\w+)(?:\[[@*]\])?(?::?-(?P<default>[^}]*))?\}|\((?P<command>[^)]*)\))"
    ),
    "batch": re.compile(r"%(?P<name>\w+)%|!(?P<braced>\w+)!"),
    "powershell": re.compile(
        r"[$@](?:\{?(?:env:)?(?P<name>\w+)\}?|\(\$(?P<braced>\w+)\)|\((?P<command>[^)]*)\))", re.I
    ),
}
_BEFORE_SCRIPT = re.compile(r"\b(accelerate\s+launch|python\d?|py)\b")

# Keys of the GUI whose values become an option's by a rule of their own.
_WORKED_OUT = ("epoch", "lr_warmup", "LoRA_type", "additional_parameters", "xformers")


@dataclass(slots=True)
class KohyaTraining:
    """What a file asks of kohya's trainer, or of one whose command line is read like its."""

    options: dict[str, Any] = field(default_factory=dict)  # by full name, typed
    is_sdxl: bool = False
    names_script: bool = False  # else `is_sdxl` is not known
    script: str = ""  # the program's name, where there is one
    folders: list[ImageFolder] = field(default_factory=list)  # instead of train_data_dir
    unknown: list[str] = field(default_factory=list)  # sentences
    elsewhere: list[str] = field(default_factory=list)  # accelerate's own, sentences


@dataclass(slots=True)
class _Command:
    """A command's words, and the variables in them that nothing gives a value."""

    words: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def read_training(path: Path) -> KohyaTraining:
    """Return the training of a shell, batch or PowerShell script, a TOML or a JSON file.

    Raises:
        ConfigError: If it cannot be read, holds no option, or values that the trainer would
            refuse; all of them listed.
    """
    try:
        text = read_text(path, encoding="utf-8-sig")
        if path.suffix.lower() == ".toml":
            training = KohyaTraining()
            take_all(training, _flat(tomllib.loads(text), training), path, options())
        elif path.suffix.lower() == ".json":
            training = _from_gui(json.loads(text), path)
        else:
            training = read_command(text, path)
    except FileNotFoundError as error:
        raise _unreadable(path, "no such file") from error
    except (OSError, ValueError) as error:
        raise _unreadable(path, f"{type(error).__name__}: {error}") from error
    if not training.options:
        raise _unreadable(path, "no option of kohya's trainer")
    return training


def read_command(
    text: str,
    path: Path,
    *,
    known: Mapping[str, Option] | None = None,
    script: re.Pattern[str] = _SCRIPT,
) -> KohyaTraining:
    """Return the options of a command in a shell, batch or PowerShell script.

    Args:
        text: The script.
        path: Its name, which tells the shell, and messages what they are about.
        known: The trainer's options; None: kohya's.
        script: Finds the trainer's program among the words.

    Raises:
        ConfigError: If values are missing or of another type.
    """
    known = options() if known is None else known
    text = text.replace("\r\n", "\n")
    shell = _shell_of(text, path)
    # Comments go first: inside a continued command one ends it for the shell, and yet what follows
    # is meant to belong to it.
    lines = ["" if _COMMENT[shell].match(line) else line for line in text.split("\n")]
    lines = _CONTINUED[shell].sub(" ", "\n".join(lines)).split("\n")
    lines = [re.sub(r"^\s*!", "", line) for line in lines]  # of a notebook
    starts = [
        index
        for index, line in enumerate(lines)
        if any(script.search(word.strip("\"'")) for word in re.split(r"[\s=]+", line))
        and not _is_assignment(line, shell)
    ]
    if not starts:  # a bare list of options
        starts = [index for index, line in enumerate(lines) if line.lstrip().startswith("--")]
        if not starts:
            return KohyaTraining()
    start = starts[0]
    command, end = _paragraph(lines, start, shell, known)
    training = KohyaTraining()
    parsed = _words(command, shell, _variables(lines[:start], shell))
    given = _given(parsed, training, known, script)
    if parsed.missing:
        raise ConfigError(
            *(
                Problem(
                    str(path),
                    f"the variable {name}, which gets its value elsewhere",
                    "a command whose values are in the file",
                    f"write its value instead of {name}, or a line that sets it above the command",
                )
                for name in dict.fromkeys(parsed.missing)
            )
        )
    more = [index for index in starts if index >= end]
    if more:
        training.unknown.append(
            f"{len(more)} more commands of kohya's trainer in this file: only the first is read"
        )
    take_all(training, given, path, known)
    return training


def _is_assignment(line: str, shell: Shell) -> bool:
    """Return whether a line only gives a variable its value; NAME=VALUE COMMAND does more."""
    match = _ASSIGNED[shell].match(line)
    if not match or shell != "sh" or match[2].startswith("("):
        return bool(match)
    return len(_words(match[2], shell, {}).words) <= 1


def _shell_of(text: str, path: Path) -> Shell:
    suffix = path.suffix.lower()
    if suffix in (".bat", ".cmd") or re.search(r"^\s*@echo off", text, re.I | re.M):
        return "batch"
    if suffix == ".ps1":
        return "powershell"
    return "sh"


def _paragraph(
    lines: Sequence[str], start: int, shell: Shell, known: Mapping[str, Option]
) -> tuple[str, int]:
    """Return the command around a line, wrapped or not, and the line after it.

    A console shows a long command over several lines without a sign of it: what follows belongs
    to it while it goes on with options, or an option still waits for its value.
    """
    command, first = lines[start], start
    while first > 0 and not _BEFORE_SCRIPT.search(command) and lines[first - 1].strip():
        if not re.match(r"\s*(-|\S*accelerate\b|\S*python)", lines[first - 1]):
            break
        first -= 1
        command = f"{lines[first]} {command}"
    end = start + 1
    while end < len(lines):
        line = lines[end].strip()
        if not line:
            # A comment inside a continued command leaves an empty line.
            if end + 1 < len(lines) and lines[end + 1].lstrip().startswith("--"):
                end += 1
                continue
            break
        last = (_words(command, shell, {}).words or [""])[-1]
        option = full_name(last.removeprefix("--"), known) if last.startswith("--") else ""
        waits = isinstance(option, str) and option and known[option].type != "flag"
        if not (line.startswith("--") or (waits and "=" not in line.split()[0])):
            break
        command = f"{command} {line}"
        end += 1
    return command, end


def _variables(lines: Sequence[str], shell: Shell) -> dict[str, list[str]]:
    """Return the words that each variable holds after these lines."""
    variables: dict[str, list[str]] = {}
    index = 0
    while index < len(lines):
        line = lines[index]
        match = _ASSIGNED[shell].match(line)
        index += 1
        if not match:
            continue
        name, value = match[1], match[2].strip()
        opening = {"sh": "(", "powershell": "@("}.get(shell, "\0")
        if value.startswith(opening):  # an array, over several lines
            while ")" not in value and index < len(lines):
                value += f" {lines[index]}"
                index += 1
            value = value.removeprefix(opening).partition(")")[0]
            value = value.replace(",", " ") if shell == "powershell" else value
            variables[name] = _words(value, shell, variables).words
        elif shell == "batch":
            variables[name] = [_expanded(value, shell, variables, [])]
        else:
            parsed = _words(value, shell, variables)
            if parsed.missing or re.search(r"::|\bnew\b|^\[|^if\b", value):
                variables.pop(name, None)  # worked out when the script runs
            else:
                variables[name] = [" ".join(parsed.words[:1])]
    return {name.lower() if shell != "sh" else name: value for name, value in variables.items()}


def _words(text: str, shell: Shell, variables: Mapping[str, list[str]]) -> _Command:
    """Return a command's words as its shell would hand them over, up to a pipe or its end."""
    command = _Command()
    if shell == "batch":
        text = _expanded(text, shell, variables, command.missing)
    escape = "" if shell == "sh" and _WINDOWS_PATH.search(text) else _ESCAPE[shell]
    quotes = '"' if shell == "batch" else "\"'"
    word, is_word, quote, index = "", False, "", 0
    while index < len(text):
        letter = text[index]
        index += 1
        if quote:
            if letter == quote:
                quote = ""
                continue
        elif letter in quotes:
            quote, is_word = letter, True
            continue
        elif letter.isspace():
            command.words += [word] if is_word else []
            word, is_word = "", False
            continue
        elif letter == "#" and not is_word and shell != "batch":
            index = (text.find("\n", index) + 1) or len(text)
            continue
        elif letter in "|;<>" or (letter == "&" and (is_word or command.words)):
            if letter in "<>" and word.isdigit():
                word, is_word = "", False
            break
        elif letter == "&":
            continue  # PowerShell's call
        if quote != "'" or shell == "batch":
            if escape and letter == escape and index < len(text):
                is_literal = quote and shell == "sh" and text[index] not in '"\\$`\n'
                word += letter if is_literal else ""
                word, is_word, index = word + text[index], True, index + 1
                continue
            match = None if shell == "batch" else _VARIABLE[shell].match(text, index - 1)
            if match:
                index = match.end()
                values = _value_of(match, shell, variables)
                if values is None:
                    command.missing.append(match[0])
                    values = [match[0]]
                elif not quote and shell == "sh":
                    values = [piece for value in values for piece in value.split()]
                for value in values[:-1]:
                    command.words.append(word + value)
                    word = ""
                word += values[-1] if values else ""
                is_word = bool(values or word)
                continue
        word, is_word = word + letter, True
    command.words += [word] if is_word else []
    return command


def _expanded(
    text: str, shell: Shell, variables: Mapping[str, list[str]], missing: list[str]
) -> str:
    def value(match: re.Match[str]) -> str:
        values = _value_of(match, shell, variables)
        if values is None:
            missing.append(match[0])
        return match[0] if values is None else " ".join(values)

    return _VARIABLE[shell].sub(value, text)


def _value_of(
    match: re.Match[str], shell: Shell, variables: Mapping[str, list[str]]
) -> list[str] | None:
    parts = match.groupdict()
    name = parts.get("name") or parts.get("braced")
    if parts.get("rest"):
        return []  # what the script itself is called with: nothing
    if name is not None and shell != "sh":
        constants = {"true": ["True"], "false": ["False"], "null": [""]}
        return variables.get(name.lower(), constants.get(name.lower()))
    if name is not None and name in variables:
        return variables[name]
    return [parts["default"]] if parts.get("default") is not None else None


def _given(
    command: _Command,
    training: KohyaTraining,
    known: Mapping[str, Option],
    script: re.Pattern[str],
) -> dict[str, Any]:
    """Return the trainer's options among the words; accelerate's are said and left out."""
    at = next((i for i, word in enumerate(command.words) if script.search(word)), None)
    if at is not None:
        match = script.search(command.words[at])
        training.names_script = True
        training.script = re.split(r"[\\/]", command.words[at])[-1]
        training.is_sdxl = bool(match and "sdxl" in (match.groupdict().get("family") or ""))
        _say_elsewhere(command.words[:at], training)
    given: dict[str, Any] = {}
    name = ""
    loose: list[str] = []
    # A word that nothing gives a value, alone, may be any number of options: said, not guessed.
    for word in command.words[0 if at is None else at + 1 :]:
        if word in command.missing:
            loose.append(word)
            command.missing.remove(word)
            continue
        if word.startswith("--"):
            written, equals, value = word.removeprefix("--").partition("=")
            option = full_name(written, known)
            if not isinstance(option, str):
                name = ""
                could = f": it could mean {shorten(option)}" if option else ""
                training.unknown.append(f"{word}: no option that is known here{could}")
                continue
            name, type_ = option, known[option].type
            given[name] = (
                ([value] if equals else []) if type_[-1] == "s" else value if equals else None
            )
            if type_ == "flag" and not equals:
                given[name] = True
        elif name and known[name].type[-1] == "s":
            given[name].append(word)
        elif name and given[name] is None:
            given[name] = word
        else:
            training.unknown.append(f"{word}: belongs to no option")
    for name in [name for name, value in given.items() if value is None]:
        del given[name]
        training.unknown.append(f"--{name}: without its value")
    training.unknown += [
        f"{word}: the script works it out; what it holds is not read" for word in loose
    ]
    return given


def _say_elsewhere(words: Sequence[str], training: KohyaTraining) -> None:
    """Say what accelerate is told, which the trainer overrides or which changes no weight."""
    index = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
    while index < len(words):
        name, equals, value = words[index].removeprefix("--").partition("=")
        index += 1
        takes_value = name not in ("multi_gpu", "module", "no_python")
        if not equals and takes_value and index < len(words) and words[index][:2] != "--":
            value = words[index]
            index += 1
        shown = f"{name}={value}" if value else name
        if name == "num_processes" and value.isdigit() and int(value) > 1:
            training.unknown.append(
                f"num_processes={value}: so many batches at once there, one here; "
                f"train.gradient_accumulation={value} updates as often"
            )
        else:
            training.elsewhere.append(f"{shown}: accelerate's own")


def _flat(table: Mapping[str, Any], training: KohyaTraining) -> dict[str, Any]:
    """Return a TOML file's options, whatever tables they stand in; arguments' tables as words."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        is_arguments = key in options() and options()[key].type == "strs"
        if not isinstance(value, dict):
            flat[key] = value
        elif is_arguments and not any(isinstance(item, dict) for item in value.values()):
            flat[key] = [f"{name}={item}" for name, item in value.items()]
        else:
            for name, item in _flat(value, training).items():
                if name in flat and flat[name] != item:
                    training.unknown.append(f"{name}={flat[name]}: given again as {item}")
                flat[name] = item
    return flat


def take_all(
    training: KohyaTraining,
    given: Mapping[str, Any],
    path: Path,
    known: Mapping[str, Option],
) -> None:
    """Add typed options to a training, those of a --config_file first.

    Raises:
        ConfigError: If values are of another type than the trainer takes, all of them.
    """
    given = dict(given)
    if config_file := given.pop("config_file", None):
        named = Path(str(config_file))
        named = named if named.suffix == ".toml" else named.with_name(named.name + ".toml")
        place = next((p for p in (named, path.parent / named) if p.is_file()), None)
        if place is None:
            raise ConfigError(
                Problem(
                    f"--config_file in {path}",
                    f"no file {named}, seen from here or from {path.parent}",
                    "the file, for it holds the settings",
                    f"copy it beside {path.name}, or import it alone: optbench import FILE.toml",
                )
            )
        flat = _flat(tomllib.loads(read_text(place, encoding="utf-8-sig")), training)
        given = {**{k: v for k, v in flat.items() if k != "config_file"}, **given}
    problems = []
    for name, value in given.items():
        option = known.get(name)
        if option is None:
            training.unknown.append(f"{name}={value}: no option that is known here")
            continue
        try:
            training.options[name] = option.parse(value)
        except ValueError as error:
            problems.append(
                Problem(
                    f"--{name} in {path}",
                    str(error),
                    f"a value of type {option.type}, as that trainer wants it",
                    f"correct it in {path.name}",
                )
            )
    if problems:
        raise ConfigError(*problems)


def _from_gui(tree: object, path: Path) -> KohyaTraining:
    """Return the training of a preset or saved configuration of kohya_ss, the GUI."""
    if not isinstance(tree, dict):
        raise ValueError("no table of settings")
    is_sdxl = str(tree.get("sdxl", "")).lower() == "true"
    training = KohyaTraining(is_sdxl=is_sdxl, names_script="sdxl" in tree)
    # The GUI leaves out what is empty, and 0 where that means nothing.
    full = {key: value for key, value in tree.items() if value not in ("", None, [])}
    given: dict[str, Any] = {}
    own: list[str] = []
    for key, value in full.items():
        listed = table("kohya-gui").get(key)
        kohya, _, argument = (listed.ours if listed else "").removeprefix("--").partition(" ")
        name = kohya if kohya and not argument and key not in _WORKED_OUT else key
        if key.endswith("_checkbox") and value in (True, "True", "true"):
            training.script = f"{key.removesuffix('_checkbox')}_train_network.py"
        if key == "sdxl" or (argument and not value):
            continue
        if argument:
            given.setdefault("network_args", []).append(f"{key}={value}")
        elif key == "xformers":
            if value in ("xformers", "sdpa", True):
                given["sdpa" if value == "sdpa" else "xformers"] = True
        elif key in ("network_args", "optimizer_args", "lr_scheduler_args"):
            given[key] = _words(str(value), "sh", {}).words
        elif name in options() and options()[name].type == "flag":
            given[name] = value in (True, 1, "True", "true", "1")
        elif name in options():
            given[name] = value
        elif key not in _WORKED_OUT:
            own.append(key)
    for name in ("max_train_epochs", "max_train_steps", "max_token_length", "lr_warmup_steps"):
        if str(given.get(name, 1)) in ("0", "75"):
            del given[name]
    if "max_train_epochs" not in given and full.get("epoch"):
        given["max_train_epochs"] = full["epoch"]
    if "lr_warmup_steps" not in given and full.get("lr_warmup"):
        given["lr_warmup_steps"] = f"{full['lr_warmup']}%"
    kind = str(full.get("LoRA_type", "Standard"))
    given["network_module"] = "networks.lora" if kind in ("Standard", "Kohya LoCon") else kind
    if kind == "Standard":  # the GUI hands these over for LoCon only
        given["network_args"] = [
            word for word in given.get("network_args", ()) if not word.startswith("conv_")
        ]
    more = _words(str(full.get("additional_parameters", "")), "sh", {})
    given |= _given(more, training, options(), _SCRIPT)
    take_all(training, given, path, options())
    if own:
        training.elsewhere.append(f"{shorten(own)}: settings of the GUI alone")
    return training


def _unreadable(path: Path, found: str) -> ConfigError:
    return ConfigError(
        Problem(
            str(path),
            found,
            "kohya's command line (train_network.py --option=value ...), or its TOML or JSON file",
            "copy the command you train with into a file, and name that file",
        )
    )
