"""Read people's scores and votes, `<sweep>/scores/*.json` and `*.csv`, into tidy rows.

The files come from the report's own page or from a spreadsheet, and may come from anyone: nothing
in them is trusted, every text is cut to a length, and what cannot be read is said in a sentence.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optbench.storage.disk import read_text
from optbench.storage.files import Row

FORMAT = "optbench scores 1"
CELL = ("run", "epoch", "prompt", "seed", "width", "height")
_KEY = "image_key"  # of the run's images that were looked at; None where a file does not say
SCORE_COLUMNS = ("sweep", "rater", *CELL, "score", "note", _KEY)
VOTE_COLUMNS = (
    "sweep",
    "rater",
    *(f"{side}_{name}" for side in ("left", "right") for name in (*CELL, _KEY)),
    "winner",
    "repeat",
)
_TIME = "at"
_WINNERS = ("left", "right", "tie", "skip")
_MAX_FILES = 200
_MAX_BYTES = 16 * 2**20
_MAX_ROWS = 100_000  # of one file
_MAX_TEXT = 4000  # letters of a note
_MAX_NAME = 300
_MAX_NUMBER = 2**53  # a browser's numbers are whole up to here
_MAX_PROBLEMS = 5  # of one file that are listed


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Everything people said of one sweep's images."""

    scores: tuple[Row, ...]  # SCORE_COLUMNS
    votes: tuple[Row, ...]  # VOTE_COLUMNS
    problems: tuple[str, ...]


class _DamagedError(Exception):
    """Something in a file that is not as it should be, in words."""


def read_scores(sweep_dir: Path, image_keys: Mapping[str, str | None]) -> Scores:
    """Return the scores and votes that lie beside a sweep's runs, and what could not be read.

    A row about a run that is not there is left out, and counted in a problem; so is one about
    images that other prompts or settings have replaced since. Of a rater's rows about the same
    image the latest counts, and a vote that lies in several files, as when a page was saved twice,
    counts once; one that was taken back in any of them does not count.

    Args:
        sweep_dir: The sweep's folder.
        image_keys: Its runs by name, each with the key of the images it has now, None if unknown.
    """
    scores: dict[tuple[Any, ...], Row] = {}
    votes: dict[Hashable, Row] = {}
    undone: set[str] = set()
    problems: list[str] = []
    folder = sweep_dir / "scores"
    paths = sorted(
        path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.suffix.lower() in (".json", ".csv") and path.is_file() and not path.is_symlink()
    )
    if len(paths) > _MAX_FILES:
        problems.append(f"scores: {len(paths)} files, of which the first {_MAX_FILES} are read")
    for path in paths[:_MAX_FILES]:
        in_file: list[str] = []
        try:
            content = _csv(path) if path.suffix.lower() == ".csv" else _json(path)
            for row, entry in _checked(content.get("scores"), content, _score, in_file):
                row |= {"sweep": sweep_dir.name, _TIME: _time(entry)}
                place = tuple(row[name] for name in ("rater", *CELL, _KEY))
                if place not in scores or scores[place][_TIME] <= row[_TIME]:
                    scores[place] = row
            # Older files give votes no id: equal ones in one file are several, in two the same.
            same: Counter[Hashable] = Counter()
            for row, entry in _checked(content.get("votes"), content, _vote, in_file):
                row["sweep"] = sweep_dir.name
                values = tuple(row.values())
                same[values] += 1
                votes.setdefault(_vote_id(entry) or (values, same[values]), row)
            if isinstance(taken_back := content.get("undone"), list):
                undone |= {name for name in taken_back[:_MAX_ROWS] if isinstance(name, str)}
        except (_DamagedError, OSError, ValueError, RecursionError, csv.Error) as error:
            in_file.append(f"it cannot be read: {str(error)[:200]}")
        problems += [f"{path.name}: {problem}" for problem in in_file[:_MAX_PROBLEMS]]
        if len(in_file) > _MAX_PROBLEMS:
            more = len(in_file) - _MAX_PROBLEMS
            problems.append(f"{path.name}: and {more} more rows like these")
    given = [row for row in scores.values() if row["score"] is not None or row["note"].strip()]
    cast = [row for name, row in votes.items() if name not in undone]
    for row in given:
        del row[_TIME]
    known_scores = [row for row in given if row["run"] in image_keys]
    known_votes = [row for row in cast if {row["left_run"], row["right_run"]} <= set(image_keys)]
    num_unknown = len(given) - len(known_scores) + len(cast) - len(known_votes)
    if num_unknown:
        problems.append(f"{num_unknown} scores or votes are about runs that are not in this folder")

    def is_current(run: str, key: str | None) -> bool:
        return None in (key, image_keys[run]) or key == image_keys[run]

    current_scores = [row for row in known_scores if is_current(row["run"], row[_KEY])]
    current_votes = [
        row
        for row in known_votes
        if all(is_current(row[f"{end}_run"], row[f"{end}_{_KEY}"]) for end in ("left", "right"))
    ]
    num_known = len(known_scores) + len(known_votes)
    if num_stale := num_known - len(current_scores) - len(current_votes):
        problems.append(
            f"{num_stale} scores or votes are about earlier images, made with other prompts or "
            "render settings: they are kept, and count again when those images are back"
        )
    return Scores(
        scores=tuple(current_scores), votes=tuple(current_votes), problems=tuple(problems)
    )


def _text(path: Path) -> str:
    if (size := path.stat().st_size) > _MAX_BYTES:
        raise _DamagedError(f"{size} bytes, more than people write")
    return read_text(path, encoding="utf-8-sig")


def _json(path: Path) -> dict[str, Any]:
    content = json.loads(_text(path))
    file_format = content.get("format") if isinstance(content, dict) else None
    if not isinstance(content, dict) or file_format != FORMAT:
        raise _DamagedError(f'it says "format": {file_format!r:.60}, expected "{FORMAT}"')
    return content


def _csv(path: Path) -> dict[str, Any]:
    """Return a table of scores as the JSON file would have it; without a rater, the file is one."""
    rows = list(csv.DictReader(io.StringIO(_text(path), newline="")))
    columns = set(rows[0]) if rows else {"run"}
    if not {"run"} <= columns or not columns & {"score", "note"}:
        raise _DamagedError(
            f"its columns are {sorted(map(str, columns))!r:.120}; expected run and score"
        )
    return {"rater": path.stem, "scores": rows}


def _checked(
    listed: Any, content: Mapping[str, Any], check: Any, problems: list[str]
) -> Iterator[tuple[Row, Mapping[str, Any]]]:
    """Give every sound row of a file with its entry; say what is wrong with the others."""
    if listed is None:
        return
    if not isinstance(listed, list):
        raise _DamagedError(f"scores and votes are lists, not {type(listed).__name__}")
    if len(listed) > _MAX_ROWS:
        problems.append(f"{len(listed)} rows, of which the first {_MAX_ROWS} are read")
    file_rater = _name(content.get("rater") or "someone")
    for number, entry in enumerate(listed[:_MAX_ROWS], start=1):
        try:
            if not isinstance(entry, Mapping):
                raise _DamagedError(f"a {type(entry).__name__}, not named values")
            # A page that opened another's file saves their words under their name.
            rater = entry.get("rater")
            row = check(entry, _name(rater) if isinstance(rater, str) and rater else file_rater)
        except _DamagedError as error:
            problems.append(f"row {number}: {error}")
            continue
        if row is not None:
            yield row, entry


def _score(entry: Mapping[str, Any], rater: str) -> Row | None:
    score, note = _number(entry.get("score"), "score"), entry.get("note")
    if score is not None and not 0 <= score <= 100:
        raise _DamagedError(f"a score of {score:g}, expected 0 to 100")
    text = _clean(note, _MAX_TEXT) if isinstance(note, str) else ""
    if score is None and not text.strip() and "at" not in entry:
        return None  # with a time it says that an earlier score was taken back
    return {"rater": rater, **_cell(entry), "score": score, "note": text}


def _vote(entry: Mapping[str, Any], rater: str) -> Row:
    winner = entry.get("winner")
    if winner not in _WINNERS:
        raise _DamagedError(f"a winner {winner!r:.60}, expected one of {', '.join(_WINNERS)}")
    row: Row = {"rater": rater}
    for side in ("left", "right"):
        cell = entry.get(side)
        if not isinstance(cell, Mapping):
            raise _DamagedError(f"its {side} side names no image")
        row |= {f"{side}_{name}": value for name, value in _cell(cell).items()}
    return {**row, "winner": winner, "repeat": entry.get("repeat") is True}


def _time(entry: Mapping[str, Any]) -> float:
    """Return when a score was given, in milliseconds; 0 where a file does not say."""
    at = entry.get("at")
    return float(at) if isinstance(at, (int, float)) and math.isfinite(at) else 0.0


def _vote_id(entry: Mapping[str, Any]) -> str | None:
    name = entry.get("id")
    return name if isinstance(name, str) and name else None


def _cell(entry: Mapping[str, Any]) -> Row:
    run, prompt = entry.get("run"), entry.get("prompt")
    if not isinstance(run, str) or not run:
        raise _DamagedError("it names no run")
    cell: Row = {"run": _name(run)}
    for name in CELL[1:]:
        if name == "prompt":
            cell[name] = _name(prompt) if isinstance(prompt, str) and prompt else None
            continue
        number = _number(entry.get(name), name)
        if number is not None and number != int(number):
            raise _DamagedError(f"{name} {number:g}, expected a whole number")
        cell[name] = None if number is None else int(number)
    key = entry.get(_KEY)
    cell[_KEY] = _name(key) if isinstance(key, str) and key else None
    return cell


def _number(value: Any, name: str) -> float | None:
    """Return a number of JSON, or one that a spreadsheet wrote as text; None for nothing."""
    if isinstance(value, str):
        if not value.strip():
            return None
        try:
            value = float(value[:50])
        except ValueError:
            raise _DamagedError(f"{name} {value!r:.60}, expected a number") from None
    if value is None:
        return None
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or abs(value) > _MAX_NUMBER or not math.isfinite(value):
        raise _DamagedError(f"{name} {value!r:.60}, expected a number")
    return float(value)


def _name(text: str) -> str:
    return _clean(str(text), _MAX_NAME)


def _clean(text: str, length: int) -> str:
    """Return a text without what no one writes: control letters, halves of surrogate pairs."""
    clean = "".join(c if c.isprintable() or c in "\n\t" else " " for c in text[:length])
    return clean.encode("utf-8", "replace").decode("utf-8")
