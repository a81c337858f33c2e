"""Scores and votes are read as people wrote them, and hostile files are only named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from optbench import analysis
from optbench.analysis import load
from optbench.analysis.evidence import read_sweep
from optbench.analysis.score_files import FORMAT, read_scores
from optbench.report import build_report
from optbench.report.ratings_section import ratings_section
from optbench.storage import files
from tests.builders.fabricated import make_run, make_sweep

RUNS = dict.fromkeys(("a", "b"))
HOSTILE = "</pre><script>alert(1)</script>\x00\u202eabc\"'"


def cell(run: str, seed: int | None = 1, epoch: int | None = 2) -> dict[str, Any]:
    return {"run": run, "epoch": epoch, "prompt": "p", "seed": seed, "width": 64, "height": 96}


def vote(left: str, right: str, winner: str, **changes: Any) -> dict[str, Any]:
    seed = changes.get("seed", 1)
    ends = {"left": cell(left, seed), "right": cell(right, seed)}
    return {**ends, "winner": winner, "repeat": changes.get("repeat", False)}


def write(sweep: Path, name: str = "me.json", **content: Any) -> None:
    path = sweep / "scores" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"format": FORMAT, "sweep": "s", "rater": "me", **content}))


def test_scores_and_votes_become_rows(tmp_path: Path) -> None:
    score = {**cell("a"), "score": 80, "note": "wings too large"}
    whole = {"run": "b", "epoch": None, "prompt": None, "seed": None, "note": "nice"}
    write(tmp_path, scores=[score, whole], votes=[vote("a", "b", "left"), vote("b", "a", "skip")])
    found = read_scores(tmp_path, RUNS)
    assert found.problems == ()
    assert [(row["run"], row["score"], row["note"]) for row in found.scores] == [
        ("a", 80.0, "wings too large"),
        ("b", None, "nice"),
    ]
    assert found.scores[0]["rater"] == "me"
    assert found.scores[1]["epoch"] is None
    assert [(row["left_run"], row["winner"], row["repeat"]) for row in found.votes] == [
        ("a", "left", False),
        ("b", "skip", False),
    ]


def test_scores_and_votes_are_of_the_image_they_were_given_to(tmp_path: Path) -> None:
    now = {"a": "new", "b": "new"}
    given = [
        {**cell("a"), "score": score, "image_key": key} for score, key in ((9, "new"), (1, "old"))
    ]
    unsaid = {**cell("b"), "score": 5}  # as older pages wrote them
    sides = {"left": {**cell("a"), "image_key": "old"}, "right": {**cell("b"), "image_key": "new"}}
    write(tmp_path, scores=[*given, unsaid], votes=[{**sides, "winner": "left"}])
    found = read_scores(tmp_path, now)
    assert [(row["run"], row["score"], row["image_key"]) for row in found.scores] == [
        ("a", 9.0, "new"),
        ("b", 5.0, None),
    ]
    assert found.votes == ()
    (problem,) = found.problems
    assert problem.startswith("2 scores or votes are about earlier images")
    # When those images are back, so are the scores.
    assert [row["score"] for row in read_scores(tmp_path, {"a": "old", "b": None}).scores] == [1, 5]


def test_a_spreadsheet_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "scores").mkdir()
    head = "\ufeffrun,epoch,prompt,seed,width,height,score,note"
    text = f"{head}\na,2,p,1,64,96,75,good\nb,,,,,,,so so\n"
    (tmp_path / "scores" / "anna.csv").write_text(text, encoding="utf-8")
    found = read_scores(tmp_path, RUNS)
    assert [(row["rater"], row["run"], row["seed"], row["score"]) for row in found.scores] == [
        ("anna", "a", 1, 75.0),
        ("anna", "b", None, None),
    ]
    assert found.problems == ()


def test_a_page_saved_twice_gives_each_vote_once(tmp_path: Path) -> None:
    first, second = ({**vote("a", "b", won), "id": won, "at": 5} for won in ("left", "right"))
    old = vote("a", "b", "tie")  # of a page that gave votes no id
    write(tmp_path, "me.json", votes=[first, old, old], scores=[{**cell("a"), "score": 9, "at": 9}])
    later = {"scores": [{**cell("a"), "score": 1, "at": 5}], "undone": ["right"]}
    write(tmp_path, "me (1).json", votes=[first, second, old, old, old], **later)
    found = read_scores(tmp_path, RUNS)
    assert sorted(row["winner"] for row in found.votes) == ["left", "tie", "tie", "tie"]
    assert [row["score"] for row in found.scores] == [9], "the latest, whatever its file is called"
    assert found.problems == ()
    # A score that was taken back later is none.
    write(tmp_path, "z.json", scores=[{**cell("a"), "score": None, "note": "", "at": 10}])
    assert read_scores(tmp_path, RUNS).scores == ()


def test_files_of_several_raters_join_and_their_agreement_is_worked_out(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "sweep", {("adamw", 8): [-0.03], ("lion", 8): [-0.02]})
    left, right = "adamw-dim8-seed1", "lion-dim8-seed1"
    ana = [vote(left, right, "left", seed=seed) for seed in range(8)]
    ben = [vote(left, right, "right" if seed < 2 else "left", seed=seed) for seed in range(8)]
    write(sweep, "ana.json", rater="Ana", votes=ana)
    # Ben opened Ana's file, and his own has her votes as hers.
    hers = [{**one, "rater": "Ana"} for one in ana]
    write(sweep, "ben.json", rater="Ben", votes=[*ben, *hers])
    votes = analysis.load(sweep).votes
    assert sorted(votes["rater"]) == ["Ana"] * 8 + ["Ben"] * 8
    agreed = analysis.rater_agreement(votes, {left: "adamw", right: "lion"})
    assert [(one.rater, one.num_same, one.num_votes) for one in agreed] == [
        ("Ana", 8, 8),
        ("Ben", 6, 8),
    ]
    assert analysis.rater_agreement(votes[votes["rater"] == "Ana"], {left: "a", right: "b"}) == []
    page = build_report(sweep).read_text()
    assert "6 of 8 votes of Ben go to the setting that the others&#39; votes put higher" in page


def test_the_last_word_of_a_rater_counts(tmp_path: Path) -> None:
    write(tmp_path, scores=[{**cell("a"), "score": 10}, {**cell("a"), "score": 90}])
    write(tmp_path, "other.json", rater="you", scores=[{**cell("a"), "score": 50}])
    found = read_scores(tmp_path, RUNS)
    assert sorted((row["rater"], row["score"]) for row in found.scores) == [
        ("me", 90.0),
        ("you", 50.0),
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("not json", "cannot be read"),
        ("[]", '"format": None'),
        ('{"format": "other 9"}', "other 9"),
        ("[" * 100_000, "cannot be read"),
        ('{"format": "optbench scores 1", "scores": 5}', "lists, not int"),
        ('{"format": "optbench scores 1", "scores": [5]}', "row 1: a int"),
        ('{"format": "optbench scores 1", "scores": [{"score": 5}]}', "names no run"),
        ('{"format": "optbench scores 1", "scores": [{"run": "a", "score": 101}]}', "0 to 100"),
        ('{"format": "optbench scores 1", "scores": [{"run": "a", "score": NaN}]}', "a number"),
        ('{"format": "optbench scores 1", "scores": [{"run": "a", "score": true}]}', "a number"),
        ('{"format": "optbench scores 1", "scores": [{"run": "a", "score": "x"}]}', "a number"),
        ('{"format": "optbench scores 1", "scores": [{"run": "zz", "score": 1}]}', "not in this"),
        ('{"format": "optbench scores 1", "votes": [{"winner": "me"}]}', "a winner 'me'"),
        ('{"format": "optbench scores 1", "votes": [{"winner": "tie"}]}', "names no image"),
        ('{"format": "optbench scores 1", "scores": [{"run": "a", "epoch": 1.5}]}', ""),
    ],
)
def test_what_cannot_be_read_is_a_sentence(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "bad.json").write_text(content)
    write(tmp_path, "good.json", scores=[{**cell("a"), "score": 1}])
    found = read_scores(tmp_path, RUNS)
    assert len(found.scores) == 1
    assert words in " ".join(found.problems)
    assert bool(found.problems) == bool(words)


def test_many_bad_rows_are_counted(tmp_path: Path) -> None:
    write(tmp_path, scores=[{"score": 1}] * 50)
    found = read_scores(tmp_path, RUNS)
    assert len(found.problems) == 6
    assert "45 more" in found.problems[-1]


def test_notes_are_cut_and_have_no_control_letters(tmp_path: Path) -> None:
    write(tmp_path, rater=HOSTILE, scores=[{**cell("a"), "note": HOSTILE + "x" * 10_000}])
    (row,) = read_scores(tmp_path, RUNS).scores
    assert len(row["note"]) == 4000
    for letter in ("\x00", "\u202e"):
        assert letter not in row["note"] + row["rater"]


def test_links_and_other_files_are_left_alone(tmp_path: Path) -> None:
    write(tmp_path, scores=[{**cell("a"), "score": 1}])
    (tmp_path / "scores" / "readme.txt").write_text("no")
    write(tmp_path / "elsewhere", rater="you", scores=[{**cell("b"), "score": 1}])
    (tmp_path / "scores" / "link.json").symlink_to(tmp_path / "elsewhere" / "scores" / "me.json")
    found = read_scores(tmp_path, RUNS)
    assert (len(found.scores), found.problems) == (1, ())


def people_sweep(tmp_path: Path) -> Path:
    sweep = tmp_path / "s"
    for index, optimizer in enumerate(("adamw", "lion", "came", "sgd")):
        make_run(sweep, optimizer, -0.01 * (index + 1), optimizer=optimizer)
    order = ["sgd", "came", "lion", "adamw"]
    scores = [
        {**cell(run, seed), "score": 90 - 20 * place + seed}
        for place, run in enumerate(order)
        for seed in (1, 2, 3)
    ]
    scores.append({**cell("sgd", 9), "score": None, "note": HOSTILE})
    votes = [
        vote(better, worse, "left", seed=seed)
        for place, better in enumerate(order)
        for worse in order[place + 1 :]
        for seed in (1, 2)
    ]
    for index, run in enumerate(order):
        for epoch, value in ((1, float(index)), (2, float(-index))):
            row = {**cell(run, 1, epoch), "metric": "new-one", "value": value}
            files.append_rows(sweep / run / "metrics.jsonl", [row])
    votes.append(vote("adamw", "sgd", "right", repeat=True))  # as before, sides changed
    votes.append(vote("lion", "sgd", "left", repeat=True))  # not as before
    votes.append(vote("sgd", "lion", "skip"))
    write(sweep, scores=scores, votes=votes)
    return sweep


def test_people_are_joined_with_what_was_measured(tmp_path: Path) -> None:
    sweep = people_sweep(tmp_path)
    frames = load(sweep)
    assert (len(frames.scores), len(frames.votes)) == (13, 15)
    people = ratings_section(read_sweep(sweep), analysis.rank_settings(frames))
    assert people is not None
    assert [one.label for one in people.rated] == ["sgd", "came", "lion", "adamw"]
    best = people.rated[0]
    assert (best.num_scores, best.score, best.num_votes) == (3, 92.0, 6)
    assert best.score_text == "92 (90 to 94)"  # 91, 92, 93: 4.303 / sqrt(3)
    assert people.self_agreement.startswith("1 of 2 pairs")
    told = dict(people.agreements)
    # The lowest validation loss is sgd's, then came's: as people say.
    assert told["validation loss on held-out images (low is good)"].startswith("+1.00 over 4")
    assert told["new-one (more of it)"].startswith("+1.00 over 4")  # in the last epoch


def test_agreement_with_oneself_knows_the_sides(tmp_path: Path) -> None:
    frames = load(people_sweep(tmp_path))
    found = analysis.self_agreement(frames.votes)
    assert found is not None
    assert (found.num_same, found.num_repeats) == (1, 2)
    assert analysis.self_agreement(frames.votes.head(3)) is None


def test_scores_of_several_runs_are_over_runs(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "s", {("adamw", 8): [-0.02, -0.03]})
    names = [run.name for run in read_sweep(sweep).runs]
    scores = [{**cell(names[i], seed), "score": 50 + 20 * i} for i in (0, 1) for seed in (1, 2)]
    write(sweep, scores=scores)
    found = analysis.mean_scores(load(sweep).scores, dict.fromkeys(names, "one"))
    assert (found["one"].mean, found["one"].num_blocks, found["one"].num_values) == (60.0, 2, 4)


def test_hostile_notes_are_text_on_the_page_and_in_tables(tmp_path: Path) -> None:
    sweep = people_sweep(tmp_path)
    write(sweep, "bad.json", format=HOSTILE)
    page = build_report(sweep)
    text = page.read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "&lt;/pre&gt;&lt;script&gt;alert(1)" in text
    assert "bad.json: it cannot be read" in text
    assert "alert(1)" in (page.parent / "scores.csv").read_text(encoding="utf-8")
    assert (page.parent / "votes.parquet").is_file()
    assert (page.parent / "effects.csv").is_file()
