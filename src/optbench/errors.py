"""Errors that teach: every message says what was found, what was expected, where, and what to type.

OptbenchError
|-- ConfigError            a setting is unknown, ill-typed, impossible or without effect
|-- DatasetError           pictures or captions are missing or cannot be read
|-- BaseError              the base's weights are missing, damaged or of another family
|-- MissingPackageError    an optional package is asked for and not installed
|-- DivergedError          the loss or the weights are no longer finite
|-- DamagedFileError       a file of ours is truncated or was written by something else
|-- LaterSchemaError       a file of ours was written by a later optbench
`-- LockLostError         another worker has taken the run over
"""

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

_NUM_NEAR = 3
_NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|cublas_status_alloc_failed",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, in the four parts a reader needs to repair it."""

    where: str  # the key, file or command that it is about
    found: str
    expected: str
    fix: str  # what to type

    @property
    def sentence(self) -> str:
        """What is wrong, to stand behind `where`."""
        return f"found {self.found}; expected {self.expected}."

    def __str__(self) -> str:
        """Return one sentence of what is wrong, and a line of what to type."""
        return f"{self.where}: {self.sentence}\n    -> {self.fix}"


class OptbenchError(Exception):
    """A mistake a person can repair; carries every problem found, never only the first."""

    def __init__(self, *problems: Problem) -> None:
        """Keep `problems` for programs and print them for people."""
        self.problems: tuple[Problem, ...] = problems
        super().__init__(describe(problems))


class ConfigError(OptbenchError):
    """A setting is unknown, ill-typed, impossible together with another one, or without effect."""


class DatasetError(OptbenchError):
    """The data set is missing, empty, or holds pictures or captions that cannot be read."""


class BaseError(OptbenchError):
    """The base's weights are missing, damaged or belong to another family."""


class MissingPackageError(OptbenchError):
    """A package that a recipe needs is not installed."""


class DivergedError(OptbenchError):
    """Training produced a loss or weights that are not finite."""


class DamagedFileError(OptbenchError):
    """A file in a run folder or cache is truncated, altered or not what its name says."""


class LaterSchemaError(OptbenchError):
    """A file in a run folder was written by a later optbench; it is whole and is left alone."""


class LockLostError(OptbenchError):
    """Another worker has taken the run over: this one may not write into its folder any more."""


def describe(problems: Iterable[Problem]) -> str:
    """Return all problems as a numbered list, or the bare paragraph when there is only one."""
    listed = list(problems)
    if len(listed) == 1:
        return str(listed[0])
    lines = [f"{number}. {problem}" for number, problem in enumerate(listed, start=1)]
    return "\n".join([f"{len(listed)} problems:", *lines])


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of Python, torch, CUDA or a library says that memory ran out."""
    # Torch's own class by its name, for torch may not be loaded.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error)))


def call_third_party(work: Callable[[], object]) -> str:
    """Return what went wrong in `work` in one line, or nothing; only Ctrl-C comes through."""
    try:
        work()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - third-party code may raise anything
        first = str(error).strip().partition("\n")[0]
        return f"{type(error).__name__}: {first}"
    return ""


def without_effect(where: str, value: object, because: str, add: str) -> Problem:
    """Return the problem of a setting that does nothing without another one.

    Args:
        where: The setting's key.
        value: What it is set to.
        because: What the other one is, for instance "network.conv_dim is null".
        add: What to type to give the setting an effect, for instance "network.conv_dim=8".
    """
    shown = str(value).lower() if isinstance(value, bool) else str(value)
    return Problem(
        where,
        f"{f'{value:g}' if isinstance(value, float) else shown} while {because}",
        "both or neither: alone it has no effect",
        f"add {add}, or leave {where} out",
    )


def near_names(name: str, names: Iterable[str], *, cutoff: float = 0.6) -> list[str]:
    """Return the known names most like one that is not known, the nearest first."""
    by_form: dict[str, list[str]] = {}
    for known in names:
        by_form.setdefault(known.lower().replace("_", " "), []).append(known)
    form = name.lower().replace("_", " ")
    near = difflib.get_close_matches(form, by_form, n=_NUM_NEAR, cutoff=cutoff)
    return [known for form in near for known in by_form[form]]


def did_you_mean(near: Sequence[str]) -> str:
    """Return the question after a misspelt name, or nothing where no known one is near."""
    return f"did you mean {' or '.join(near)}?" if near else ""


def shorten(names: Sequence[str], *, most: int = 5) -> str:
    """Return the first few of many names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
