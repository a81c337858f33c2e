"""Record what a run was made with: versions, hardware, the code's commit, the command.

A run's provenance.json holds what is true of the whole run, and `sessions`, a list that only grows
of the processes that worked on it, each with what it did. An older file is the only session.
Nothing in it names the machine or the person: no host name, and the home folder is written `~`.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from optbench.errors import DamagedFileError
from optbench.storage.files import read_json, set_aside, write_json
from optbench.storage.nested import map_values, section
from optbench.storage.secrets import hide_in_arguments

_GIT_TIMEOUT_SECONDS = 10
_GIT_VARIABLES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
_CHECKOUT = Path(__file__).resolve().parents[3]


def collect(
    *, packages: Sequence[str], command: Sequence[str], extra: Mapping[str, Any]
) -> dict[str, Any]:
    """Return facts about this process, this machine and this command, as JSON holds them.

    Args:
        packages: Names of distributions whose versions count; a missing one is stored as null.
        command: The command line as it was typed; secrets in it are hidden.
        extra: Further keys, stored as they are with the home folder shortened; they win.
    """
    content: dict[str, Any] = {
        "optbench": package_version("optbench"),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": hide_in_arguments(command),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu_model(),
        # In a container, a process may use fewer than there are.
        "num_cpus": (
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count()
        ),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": _gpu_names(),
        "packages": {name: package_version(name) for name in packages},
        "git": git_state(_CHECKOUT),
        **extra,
    }
    shortened: dict[str, Any] = map_values(content, without_home)
    return shortened


def begin_session(path: Path, session: Mapping[str, Any], facts: Mapping[str, Any]) -> str | None:
    """Add a process to those that worked on a run; return a sentence if the file was damaged.

    Args:
        path: The run's provenance.json.
        session: What is true of this process, as `collect` returns it, and what it did so far.
        facts: What is true of the run; they replace those that were there.
    """
    before: dict[str, Any] = {}
    damage: str | None = None
    if path.is_file():
        try:
            before = read_json(path)
        except DamagedFileError as error:
            aside = set_aside(path)
            damage = (
                f"{path.name}: {error.problems[0].found}; it is now {aside.name}, and who worked "
                "on the run before is not known"
            )
    content: dict[str, Any] = map_values(facts, without_home)
    if damage is not None:
        content["notices"] = [*content.get("notices", ()), damage]
    write_json(path, {**content, "sessions": [*sessions_of(before), session]})
    return damage


def run_facts(path: Path) -> dict[str, Any]:
    """Return what a provenance.json says of its run besides the sessions; nothing if damaged.

    An older file mixes both; what is a session's stays with the run there, too.
    """
    try:
        content = read_json(path)
    except DamagedFileError:
        return {}
    content.pop("sessions", None)
    return content


def belongs_to_another(path: Path, weights_fingerprint: str) -> bool:
    """Return whether a folder says that its files are those of a run with other settings or data.

    A folder that was copied or renamed does, and one whose name is another's by accident: names
    hold 8 of the fingerprint's 16 digits.
    """
    return run_facts(path).get("weights_fingerprint") not in (None, weights_fingerprint)


def update_session(path: Path, **changes: Any) -> None:
    """Write what the last session, which must be this process, has done since."""
    content = read_json(path)
    content["sessions"][-1].update(changes)
    write_json(path, content)


def shown_facts(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a reader is shown of a run: its facts, and those of what trained it last.

    Where several processes worked on it, `sessions` has a sentence for each.
    """
    sessions = sessions_of(content)
    trained = training_sessions(content) or sessions
    facts = {**(trained[-1] if trained else {}), **content}
    facts.pop("sessions", None)
    for name in _OF_SESSIONS:
        facts.pop(name, None)
    if len(sessions) > 1:
        facts["sessions"] = [_session_sentence(session) for session in sessions]
    return facts


_OF_SESSIONS = ("from_step", "to_step", "num_rendered", "num_measured")


def _session_sentence(session: Mapping[str, Any]) -> str:
    first, last = session.get("from_step"), session.get("to_step")
    rendered, measured = session.get("num_rendered"), session.get("num_measured")
    did = [
        *([f"trained steps {first} to {last}"] if first != last else []),
        *([f"rendered {rendered} image{'s' * (rendered != 1)}"] if rendered else []),
        *([f"measured {measured} epoch{'s' * (measured != 1)}"] if measured else []),
    ]
    # Of a session that trained nothing, too, it is said what it computed with.
    alone = {**session, "from_step": 0, "to_step": 1}
    facts = identity_facts({"sessions": [alone]})
    made_with = [
        f"{name} {value}"
        for name, value in (
            ("optbench", facts["optbench_version"]),
            ("torch", facts["torch_version"]),
            ("on", facts["device_kind"]),
            ("threads", facts["threads"]),
        )
        if value is not None
    ]
    return f"{session.get('time', '')}: {', '.join([*(did or ['changed nothing']), *made_with])}"


def sessions_of(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the processes that worked on a run, in order; an older file is the one of them."""
    listed = content.get("sessions")
    if isinstance(listed, list):
        return [session for session in listed if isinstance(session, dict)]
    return [dict(content)] if content else []


def training_sessions(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the sessions whose steps are in the weights, in order.

    One that trained again from the beginning leaves nothing of those before it.
    """
    contributing: list[dict[str, Any]] = []
    next_step = float("inf")
    for session in reversed(sessions_of(content)):
        first, last = session.get("from_step", 0), session.get("to_step", next_step)
        is_known = isinstance(first, int) and isinstance(last, (int, float))
        if is_known and first < min(last, next_step):
            contributing.insert(0, session)
            next_step = first
    return contributing


def identity_facts(content: Mapping[str, Any]) -> dict[str, str | None]:
    """Return what a run saw and was computed with, as text, from its provenance.

    Where the processes that trained it differ, all values are named, with commas between.
    """
    sessions = training_sessions(content)

    def joined(value_of: Callable[[Mapping[str, Any]], object]) -> str | None:
        values = [value for session in sessions if (value := value_of(session)) is not None]
        return ", ".join(dict.fromkeys(map(str, values))) or None

    def version(session: Mapping[str, Any]) -> str | None:
        package, version = optimizer.get("package"), optimizer.get("package_version")
        if isinstance(package, str):
            version = section(session, "packages").get(package, version)
            return None if version is None else f"{package} {version}"
        return None if version is None else str(version)

    def commit(session: Mapping[str, Any]) -> str | None:
        git = section(session, "git")
        return f"{git['commit']}{'+' if git.get('is_dirty') else ''}" if "commit" in git else None

    def kind(session: Mapping[str, Any]) -> str | None:
        device = session.get("device")
        return device.partition(":")[0] if isinstance(device, str) else None

    def gpu(session: Mapping[str, Any]) -> str | None:
        gpus = session.get("gpus")
        if kind(session) in (None, "cpu") or not isinstance(gpus, list) or not gpus:
            return None
        index = str(session["device"]).partition(":")[2]
        number = int(index) if index.isdigit() else 0
        return str(gpus[number if number < len(gpus) else 0])

    def on_cpu(name: str) -> Callable[[Mapping[str, Any]], object]:
        return lambda session: session.get(name) if kind(session) == "cpu" else None

    optimizer, dataset = section(content, "optimizer"), section(content, "dataset")
    facts = {
        "weights_fingerprint": content.get("weights_fingerprint"),
        # Of the whole folder, also where each seed holds out images of its own.
        "data_fingerprint": dataset.get("whole_fingerprint", dataset.get("fingerprint")),
        "base_fingerprint": section(content, "base").get("fingerprint"),
        "optimizer_source": optimizer.get("source_fingerprint"),
        "optimizer_version": joined(version),
        "torch_version": joined(lambda session: section(session, "packages").get("torch")),
        "optbench_version": joined(lambda session: session.get("optbench")),
        "optbench_commit": joined(commit),
        "device_kind": joined(kind),
        "gpu": joined(gpu),
        "cpu": joined(on_cpu("cpu")),
        "threads": joined(on_cpu("num_threads")),
    }
    return {name: None if value is None else str(value) for name, value in facts.items()}


def package_version(package: str) -> str | None:
    """Return the version of an installed distribution, or None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _gpu_names() -> list[str]:
    """Return the GPUs' names if torch is loaded already; never loads it for that."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


@functools.cache
def git_state(checkout: Path) -> Mapping[str, Any] | None:
    """Return commit and whether files differ from it; None outside a checkout of our own.

    Read once per process: the code in memory stays the same however the files are edited.
    """
    if not (checkout / ".git").exists():
        return None
    commit = _git(checkout, "rev-parse", "HEAD")
    changes = _git(checkout, "status", "--porcelain", "--untracked-files=no")
    if commit is None or changes is None:
        return None
    return {"commit": commit, "is_dirty": bool(changes)}


def _git(checkout: Path, *arguments: str) -> str | None:
    # Inside a hook, these variables would lead git to the hook's repository.
    environment = {name: value for name, value in os.environ.items() if name not in _GIT_VARIABLES}
    try:
        result = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(checkout), *arguments],
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT_SECONDS,
            check=False,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def without_home(value: Any) -> Any:
    """Return a text or path with the home folder written `~`; any other value as it is."""
    if not isinstance(value, (str, Path)):
        return value
    home, text = str(Path.home()), str(value)
    return (
        text
        if home == "/" or home not in text
        else re.sub(rf"{re.escape(home)}(?=/|$|\W)", "~", text)
    )
