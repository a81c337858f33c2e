"""Print what `optbench --help` and `optbench NAME --help` say, without torch, Hydra or rich.

The explanation of a setting is the comment of its line in conf/, and the question of a named sweep
stands in the first lines of its file: what a person reads here and there cannot differ.
"""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from os import environ
from pathlib import Path
from typing import NamedTuple

import yaml

from optbench.cli.commands import COMMANDS
from optbench.storage import resources

_MAX_WIDTH = 110  # longer lines are hard to read
_WIDTH_WITHOUT_TERMINAL = 100
_MARGIN = 2
_LEFT = 30  # columns of `key=default`; a longer one has the line for itself
_LONGEST_DEFAULT = 28
_MANY_OPTIONS = 12
_QUESTION = "# Question: "
# Keys that say what a file is, and what a recipe's author writes and nobody types.
_NO_SETTINGS = ("defaults", "hydra", "name", "_target_")
_OF_RECIPES = ("group_args", "refused_args", "traits", "package", "paper", "note")


class Setting(NamedTuple):
    """One key of conf/."""

    key: str  # dotted, as it is typed
    default: str  # as it is typed; "" where it is worked out from other settings
    words: str


class Group(NamedTuple):
    """A config group: its options and the settings that each of them sets; "" is the root."""

    name: str
    default: str
    options: dict[str, str]  # name -> first sentence of its file
    settings: list[Setting]


def print_overview() -> None:
    """Print the commands with one line each, and what to type first."""
    page = _Page()
    page.paragraph(
        "optbench trains one LoRA per combination of settings on identical images, "
        "noise and seeds, renders the same prompts from each, and builds one report: which "
        "optimizer and settings should I train my LoRA with, and how sure is that?"
    )
    page.title("First things to type")
    page.examples(
        (
            ("A small sweep on the embedded base model; needs no GPU and no images", "sweep=demo"),
            (
                "What a sweep would run, and for how long",
                "plan -m optimizer=adamw,lion network.dim=16,32",
            ),
            ("Run it", "-m optimizer=adamw,lion network.dim=16,32"),
        )
    )
    page.title("Commands")
    for name, info in COMMANDS.items():
        page.row(name, info.line, left=12)
    page.title("More")
    page.examples(
        (
            ("Every setting of a command, explained", "NAME --help"),
            ("Only the settings that have to do with a word", "NAME --help dropout"),
        )
    )
    page.paragraph("From a folder of images to a report, step by step: README.md and docs/.")
    page.show()


def print_help(name: str, *, only: Sequence[str] = ()) -> None:
    """Print a command's usage, examples, settings and named sweeps.

    Args:
        name: The command.
        only: Words that a setting's key or explanation must hold to be listed; none: all are.
    """
    info = COMMANDS[name]
    groups = [] if info.config is None else groups_of(info.config, only=info.groups)
    matching = [_matching(group, only) for group in groups]
    page = _Page()
    if only and any(group.settings for group in matching):
        for group in matching:
            page.group(group)
        page.show()
        return
    page.paragraph(f"usage: {resources.command_line(name)} {info.usage}")
    page.paragraph(info.about)
    if info.examples:
        page.title("Examples")
        page.examples(info.examples)
    for group in groups:
        page.group(group)
    if info.sweeps is not None:
        page.title("Named sweeps: sweep=NAME")
        for sweep, question in sweep_questions(info.sweeps).items():
            page.row(sweep, question)
    if groups and info.groups is None:
        page.title("More")
        page.examples(
            (
                ("Only the settings that have to do with a word", f"{name} --help seed"),
                ("The config that other arguments give, as YAML", f"{name} --cfg job"),
            )
        )
    page.show()


def groups_of(config: str, *, only: Sequence[str] | None = None) -> list[Group]:
    """Return the config groups of a primary config in its order, its own keys first.

    Args:
        config: A file of conf/, without its suffix.
        only: The names of the groups to read; None: all, with the root.
    """
    root = resources.conf_dir()
    primary = root / f"{config}.yaml"
    defaults = yaml.safe_load(primary.read_text("utf-8"))["defaults"]
    groups = [Group("", "", {}, settings_of(primary))]
    for entry in defaults:
        ((name, option),) = entry.items() if isinstance(entry, dict) else [(entry, None)]
        if not (root / name).is_dir():
            continue
        files = sorted((root / name).glob("*.yaml"))
        files.sort(key=lambda file: file.stem != str(option))  # its words and defaults come first
        settings: dict[str, Setting] = {}
        for file in files:
            package = re.search(r"^# @package (\w+)$", file.read_text("utf-8"), re.MULTILINE)
            prefix = package[1] if package else name
            for setting in settings_of(file, prefix=f"{prefix}."):
                if name == "optimizer" and setting.key.split(".")[1] in _OF_RECIPES:
                    continue
                known = settings.setdefault(setting.key, setting)
                if not known.words and setting.words:
                    settings[setting.key] = known._replace(words=setting.words)
        options = {file.stem: first_sentence(file) for file in sorted(files)}
        groups.append(Group(name, str(option), options, list(settings.values())))
    return groups if only is None else [group for group in groups if group.name in only]


def settings_of(file: Path, *, prefix: str = "") -> list[Setting]:
    """Return the keys of a YAML file, each with its default and its comment.

    A comment stands behind the value or in the lines right above the key; the block at the top of a
    file is about the file. What lies inside a key, like a recipe's arguments, is one setting
    `key.*`; only a group of the root is opened.

    Args:
        file: A file of conf/.
        prefix: What stands before its keys on the command line, with the dot; "" for the root.
    """
    text = file.read_text("utf-8")
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode):
        return []
    return list(_settings(root, text.splitlines(), prefix))


def _settings(node: yaml.MappingNode, lines: Sequence[str], prefix: str) -> Iterator[Setting]:
    for key, value in node.value:
        if key.value in _NO_SETTINGS:
            continue
        above: list[str] = []
        for line in reversed(lines[: key.start_mark.line]):
            if not line.strip().startswith("#"):
                break
            above.insert(0, line.strip().lstrip("#").strip())
        if len(above) == key.start_mark.line:
            above = []  # the top of the file
        is_block = isinstance(value, yaml.MappingNode) and not value.flow_style
        end = key.end_mark if is_block else value.end_mark
        rest = lines[end.line][end.column :] if end.line < len(lines) else ""
        behind = rest.partition("# ")[2].strip()
        words = " ".join(part for part in (*above, behind) if part)
        name = f"{prefix}{key.value}"
        if is_block and not prefix:
            yield Setting(f"{name}.*", "", words)
            yield from _settings(value, lines, f"{name}.")
        elif is_block:
            yield Setting(f"{name}.*", "", words)
        else:
            start, end = value.start_mark, value.end_mark
            default = lines[start.line][start.column : end.column] if start.line == end.line else ""
            yield Setting(name, "" if "${" in default else default, words)


def first_sentence(file: Path) -> str:
    """Return the first sentence of the comment at the top of a config file."""
    words = []
    for line in file.read_text("utf-8").splitlines():
        if not line.startswith("# "):
            break
        if not line.startswith(("# @package", "#   ")):
            words.append(line.removeprefix("# "))
    return re.split(r"(?<=[.?!])\s", " ".join(words))[0]


def sweep_questions(command: str) -> dict[str, str]:
    """Return the question that each named sweep of a command answers."""
    questions = {}
    for name in resources.sweep_names(command):
        lines = (resources.resource_root() / "sweep" / f"{name}.yaml").read_text("utf-8")
        question = (line for line in lines.splitlines() if line.startswith(_QUESTION))
        questions[name] = next(question, _QUESTION).removeprefix(_QUESTION)
    return questions


def _matching(group: Group, words: Sequence[str]) -> Group:
    if group.name in words:
        return group
    settings = [
        setting
        for setting in group.settings
        if all(word.lower() in f"{setting.key} {setting.words}".lower() for word in words)
    ]
    return group._replace(options={}, settings=settings)


class _Page:
    """Lines of help as wide as the terminal, collected and shown at once."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()
        columns = shutil.get_terminal_size().columns
        self._width = min(columns, _MAX_WIDTH) if self._is_terminal else _WIDTH_WITHOUT_TERMINAL
        self._lines: list[str] = []

    def show(self) -> None:
        print("\n".join(self._lines).strip("\n"))

    def title(self, text: str) -> None:
        self._lines += ["", self._styled(text, 1)]

    def paragraph(self, text: str, *, indent: int = 0) -> None:
        filled = textwrap.fill(
            text,
            self._width,
            initial_indent=" " * indent,
            subsequent_indent=" " * indent,
            break_on_hyphens=False,
            break_long_words=False,
        )
        self._lines += [*([""] if self._lines and not indent else []), filled]

    def examples(self, examples: Sequence[tuple[str, str]]) -> None:
        """Add commands to copy, each whole on its line, with what it does above it."""
        for words, command in examples:
            if words:
                margin = " " * _MARGIN
                wrapped = textwrap.wrap(f"# {words}", self._width - _MARGIN)
                self._lines += [f"{margin}{self._styled(line, 2)}" for line in wrapped]
            self._lines.append(f"{' ' * _MARGIN}{resources.program()} {command}")

    def group(self, group: Group) -> None:
        """Add a group's options and settings, if it has any."""
        if not group.settings:
            return
        self.title(group.name or "Settings of the command")
        shown = {name: words for name, words in group.options.items() if words}
        if len(group.options) > _MANY_OPTIONS or (len(group.options) > 1 and not shown):
            names = ", ".join(
                f"{name} (default)" if name == group.default else name for name in group.options
            )
            self.paragraph(names, indent=_MARGIN)
        elif len(group.options) > 1:
            for name, words in group.options.items():
                mark = " (default)" if name == group.default else ""
                self.row(f"{group.name}={name}{mark}", words)
        for setting in group.settings:
            default = "(must be given)" if setting.default == "???" else setting.default
            if len(default) > _LONGEST_DEFAULT:
                default = f"{default[: _LONGEST_DEFAULT - 3]}..."
            self.row(setting.key, setting.words, value=default)

    def row(self, name: str, words: str, *, value: str | None = None, left: int = _LEFT) -> None:
        """Add a name, what it equals, and its explanation in a column of its own."""
        plain = name if value is None else f"{name}={value}" if value else name
        styled = self._styled(name, 36) + (self._styled(f"={value}", 2) if value else "")
        column = min(left, self._width // 2) + _MARGIN
        filled = textwrap.wrap(words, self._width - column, break_on_hyphens=False) or [""]
        if len(plain) + _MARGIN < column:
            first = f"{' ' * _MARGIN}{styled}{' ' * (column - _MARGIN - len(plain))}{filled.pop(0)}"
            self._lines.append(first.rstrip())
        else:
            self._lines.append(f"{' ' * _MARGIN}{styled}")
        self._lines += [f"{' ' * column}{line}" for line in filled if line]

    def _styled(self, text: str, code: int) -> str:
        if not self._is_terminal or environ.get("NO_COLOR") or environ.get("TERM") == "dumb":
            return text
        return f"\033[{code}m{text}\033[0m"
