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

from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, in the four parts a reader needs to repair it."""

    where: str  # the key, file or command that it is about
    found: str
    expected: str
    fix: str  # what to type

    def __str__(self) -> str:
        """Return the problem as one short paragraph."""
        return f"{self.where}: found {self.found}; expected {self.expected}.\n    -> {self.fix}"


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


def attempt(work: Callable[[], object]) -> str:
    """Return what went wrong in `work` in one line, or nothing; only Ctrl-C comes through."""
    try:
        work()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - third-party code may raise anything
        first = str(error).strip().partition("\n")[0]
        return f"{type(error).__name__}: {first}"
    return ""
