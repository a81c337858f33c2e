"""Votes and scores in a browser: none is lost, none cast by accident, and they find the truth."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from optbench.analysis import load, stats
from optbench.analysis.stats import Comparison
from optbench.cli import share
from optbench.errors import DatasetError
from optbench.report import build_report
from optbench.report.vote_page import vote_page
from tests.builders.fabricated_sweep import Shape, make_sweep
from tests.builders.viewer_page import Viewer, chromium, download, needs_chromium, wait_until

pytestmark = needs_chromium

READY = ".vb-pair[data-ready]"
STATUS = '[data-part="scores"] [role="status"]'


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four settings (2 optimizers, 2 dims) with two training seeds each."""
    sweep = tmp_path_factory.mktemp("runs") / "demo"
    make_sweep(sweep, Shape(num_epochs=2, train_seeds=(1, 2)))
    return build_report(sweep)


@pytest.fixture
def context(browser: Any) -> Iterator[Any]:
    made = browser.new_context(viewport={"width": 1500, "height": 1300})
    yield made
    made.close()


@pytest.fixture
def viewer(context: Any, index: Path) -> Iterator[Viewer]:
    viewer = Viewer(context.new_page()).open(index)
    yield viewer
    assert viewer.faults == []


def give(viewer: Viewer, score: int, cell: int = 9) -> None:
    viewer.page.evaluate(
        """([score, cell]) => {
          const { app } = optbench, element = document.querySelectorAll('.vg-cell')[cell];
          app.select(Number(element.dataset.row), Number(element.dataset.col));
          app.scores.set(app.scores.cellEntry(app.cell, false), { score });
          app.render();
        }""",
        [score, cell],
    )


def scores(viewer: Viewer) -> list[int]:
    """Return the scores that this page knows of."""
    given = viewer.page.evaluate("optbench.app.scores.given().map((entry) => entry.score)")
    return sorted(given)


def start(viewer: Viewer) -> None:
    viewer.page.get_by_role("button", name="Vote for two minutes").click()
    viewer.page.locator(READY).wait_for()


def num_votes(viewer: Viewer) -> int:
    return int(viewer.page.evaluate("optbench.app.scores.votes.size"))


def test_reports_of_equal_names_keep_their_scores(
    context: Any, index: Path, tmp_path: Path
) -> None:
    other = tmp_path / "demo"
    make_sweep(other, Shape(num_epochs=1, num_optimizers=1))
    first = Viewer(context.new_page()).open(index)
    give(first, 50)
    second = Viewer(context.new_page()).open(build_report(other))
    give(second, 20, cell=5)
    again = Viewer(context.new_page()).open(index)
    assert (scores(second), scores(again)) == ([20], [50])


def test_tabs_of_one_report_know_of_each_other(context: Any, index: Path) -> None:
    first, second = (Viewer(context.new_page()).open(index) for _ in range(2))
    give(first, 50, cell=9)
    give(first, 60, cell=10)
    give(second, 70, cell=11)
    for viewer in (first, second):
        wait_until(viewer.page, "optbench.app.scores.given().length === 3")
        assert scores(viewer) == [50, 60, 70]
    # What is taken back in one tab does not return from the other.
    viewer = first
    viewer.page.evaluate("optbench.app.scores.set(optbench.app.scores.given()[0], { score: null })")
    wait_until(second.page, "optbench.app.scores.given().length === 2")
    give(second, 10, cell=12)
    assert scores(Viewer(context.new_page()).open(index)) == [10, 60, 70]
    assert first.faults == second.faults == []


def test_a_rebuilt_report_and_an_older_page_lose_nothing(
    context: Any, index: Path, tmp_path: Path
) -> None:
    sweep = tmp_path / "old"
    runs = make_sweep(sweep, Shape(num_epochs=1))
    cell = {"epoch": 1, "prompt": "a", "seed": 112233, "width": 64, "height": 96}
    here = [{"run": run.name, **cell} for run in runs[:2]]
    old = {
        "format": "optbench scores 1",
        "sweep": "old",
        "rater": "Ana",
        "scores": [{**here[0], "score": 40, "note": ""}, {"run": "another's", "score": 5}],
        "votes": [{"left": here[0], "right": here[1], "winner": "left", "repeat": False}] * 2,
    }
    page = context.new_page()
    page.goto(index.as_uri())
    page.evaluate("(old) => localStorage.setItem('optbench scores 1: old', old)", json.dumps(old))
    viewer = Viewer(page).open(build_report(sweep))
    assert (scores(viewer), num_votes(viewer)) == ([40], 2)
    identity = viewer.page.evaluate("optbench.app.model.data.id")
    give(viewer, 90, cell=5)

    viewer.open(build_report(sweep))
    assert viewer.page.evaluate("optbench.app.model.data.id") == identity
    assert scores(viewer) == [40, 90]
    # A run that is gone keeps its scores, in the browser and in files.
    hidden = shutil.move(runs[0].path, tmp_path / "aside")
    viewer.open(build_report(sweep))
    give(viewer, 91, cell=5)
    content = json.loads(download(viewer, "save as JSON", tmp_path))
    assert sorted(entry["score"] for entry in content["scores"]) == [40, 90, 91]
    shutil.move(hidden, runs[0].path)
    # A report folder that was deleted has a new id, and the same images.
    shutil.rmtree(sweep / "report")
    viewer.open(build_report(sweep))
    assert viewer.page.evaluate("optbench.app.model.data.id") != identity
    assert num_votes(viewer) == 2
    assert 40 in scores(viewer)


def test_unsaved_is_said_until_it_is_downloaded(viewer: Viewer, tmp_path: Path) -> None:
    badge = viewer.page.locator(".vs-unsaved")
    assert not badge.is_visible()
    give(viewer, 50)
    give(viewer, 60, cell=10)
    assert badge.inner_text() == "2 unsaved"
    viewer.page.reload()
    assert badge.inner_text() == "2 unsaved"
    download(viewer, "save as JSON", tmp_path)
    assert not badge.is_visible()
    viewer.page.reload()
    viewer.page.locator(".vg-cell").first.wait_for()
    assert not badge.is_visible()


def test_no_vote_by_accident_and_each_can_be_taken_back(viewer: Viewer) -> None:
    start(viewer)
    focus = "document.activeElement.className"
    assert viewer.page.evaluate(focus) == "vb-pair"
    viewer.press("Enter", "Space")
    assert num_votes(viewer) == 0
    # A key that is held down repeats itself: Chromium marks what follows the first press.
    for _ in range(10):
        viewer.page.keyboard.down("ArrowLeft")
        viewer.page.wait_for_timeout(60)
    viewer.page.locator(READY).wait_for()
    for _ in range(10):
        viewer.page.keyboard.down("ArrowLeft")
    viewer.page.keyboard.up("ArrowLeft")
    assert num_votes(viewer) == 1
    # Two presses in a moment are one vote: nobody saw the second pair.
    viewer.press("ArrowRight", "ArrowRight", "ArrowRight")
    assert num_votes(viewer) == 2
    viewer.page.locator(READY).wait_for()
    assert viewer.page.evaluate(focus) == "vb-pair"
    viewer.press("Backspace")
    assert num_votes(viewer) == 1
    viewer.page.locator(READY).wait_for()
    viewer.page.get_by_role("button", name="undo").click()
    assert num_votes(viewer) == 0
    assert viewer.page.get_by_role("button", name="undo").is_disabled()
    viewer.page.locator(READY).wait_for()
    viewer.press("ArrowLeft")
    viewer.page.locator(READY).wait_for()
    viewer.press("Escape")
    assert viewer.page.locator("dialog.vb h2").inner_text() == "What you judged"
    viewer.press("Escape")
    assert viewer.page.locator("dialog[open]").count() == 0
    # What was taken back is in no file and in no other tab.
    assert len(viewer.page.evaluate("optbench.app.scores.content().votes")) == 1


def test_a_pair_waits_until_both_images_are_drawn(viewer: Viewer) -> None:
    # One of the images never arrives.
    viewer.page.evaluate(
        "() => { const { address } = optbench.app.model; let num = 0;"
        " optbench.app.model.address = function (cell, isSmall) {"
        " num += isSmall ? 0 : 1;"
        " const lost = !isSmall && num === 2;"
        " return lost ? 'data:image/png;base64,' : address.call(this, cell, isSmall);"
        " }; const { prototype } = HTMLImageElement;"
        " Object.defineProperty(prototype, 'onerror', { set() {} }); }"
    )
    viewer.page.get_by_role("button", name="Vote for two minutes").click()
    wait_until(viewer.page, "document.querySelectorAll('.vb canvas[data-drawn]').length === 1")
    viewer.page.wait_for_timeout(600)
    viewer.press("ArrowLeft")
    assert num_votes(viewer) == 0


def test_blind_votes_tell_no_name(viewer: Viewer, tmp_path: Path) -> None:
    labels = ["adamw", "lion", "dim", "epoch"]
    viewer.page.locator(".vg-cell").nth(5).focus()
    viewer.press("p", "b")
    for key in ("ArrowLeft", "ArrowRight", "ArrowDown", "s", "t", "ArrowLeft"):
        viewer.page.locator(READY).wait_for()
        dialog = viewer.page.locator("dialog.vb[open]").evaluate("(dialog) => dialog.outerHTML")
        seen = viewer.page.evaluate("document.body.innerText")
        shown = f"{dialog} {seen} {viewer.page.title()} {viewer.hash()}".lower()
        assert not [label for label in labels if label in shown]
        assert viewer.page.locator(".vb img, .vb a").count() == 0
        viewer.press(key)
    viewer.page.get_by_role("button", name="finish").click()
    summary = viewer.page.locator("dialog.vb").inner_text()
    assert "6 pairs" in summary
    assert "adamw network.dim=4" in summary
    viewer.press("Escape")
    assert "pin=" in viewer.hash()
    assert viewer.page.title() != "blind comparison"

    votes = json.loads(download(viewer, "save as JSON", tmp_path))["votes"]
    winners = ["left", "right", "tie", "skip", "tie", "left"]
    assert [vote["winner"] for vote in votes] == winners
    for vote in votes:
        left, right = dict(vote["left"]), dict(vote["right"])
        assert left.pop("run").split("-seed")[0] != right.pop("run").split("-seed")[0]
        assert left == right, "matched in everything but the setting"


def test_pairs_are_of_settings_some_come_again_and_sides_are_chance(viewer: Viewer) -> None:
    votes = viewer.page.evaluate(
        """() => {
          const { app } = optbench, voting = new optbench.Voting(app.model, app.scores);
          voting.start(app.layout.runs, 0);
          app.scores.keep = () => {};
          for (let count = 0; count < 600; count += 1) {
            voting.vote(voting.draw(), Math.random() < 0.5 ? "left" : "right");
          }
          return [...app.scores.votes.values()];
        }"""
    )
    assert 0.05 < sum(vote["repeat"] for vote in votes) / 600 < 0.15
    on_the_left = sum(vote["left"]["run"] < vote["right"]["run"] for vote in votes)
    assert 0.4 < on_the_left / 600 < 0.6
    shown: dict[str, int] = {}
    pairs = set()
    for place, vote in enumerate(votes):
        sides = [vote[side]["run"].split("-seed")[0] for side in ("left", "right")]
        assert sides[0] != sides[1]
        pairs.add(tuple(sorted(sides)))
        for side in ("left", "right"):
            shown[vote[side]["run"]] = shown.get(vote[side]["run"], 0) + 1
        if vote["repeat"]:
            pair = {json.dumps(vote["left"]), json.dumps(vote["right"])}
            before = [{json.dumps(v["left"]), json.dumps(v["right"])} for v in votes[:place]]
            assert pair in before
    assert len(pairs) == 6, "every pair of four settings"
    assert len(shown) == 8
    for name, num in shown.items():
        here, there = ("seed1", "seed2") if "seed1" in name else ("seed2", "seed1")
        both = num + shown[name.replace(here, there)]
        assert num / both == pytest.approx(0.5, abs=0.2), "both trainings of a setting"


def simulated(num: int, truth: list[float], *, num_cells: int, num_runs: int) -> list[Any]:
    drawn = random.Random(5)
    votes = []
    for _ in range(num):
        first, second = drawn.sample(range(len(truth)), 2)
        chance = 1 / (1 + 2.718281828 ** (truth[second] - truth[first]))
        luck = drawn.random()
        votes.append(
            {
                "first": first,
                "second": second,
                "winner": 2 if luck > 0.9 else int(luck / 0.9 > chance),
                "cell": f"cell {drawn.randrange(num_cells)}",
                "runs": [f"{one} {drawn.randrange(num_runs)}" for one in (first, second)],
            }
        )
    return votes


@pytest.mark.parametrize(
    ("num", "num_cells", "num_runs"), [(1, 1, 1), (30, 4, 1), (60, 1, 2), (90, 70, 3)]
)
def test_bars_have_the_report_s_numbers(
    viewer: Viewer, num: int, num_cells: int, num_runs: int
) -> None:
    votes = simulated(num, [1.0, 0.3, 0.0, -1.0], num_cells=num_cells, num_runs=num_runs)
    in_page = viewer.page.evaluate("(votes) => optbench.strengths(votes)", votes)
    in_report = stats.bradley_terry(
        [
            Comparison(
                first=vote["first"],
                second=vote["second"],
                winner=("first", "second", None)[vote["winner"]],  # type: ignore[arg-type]
                cell=vote["cell"],
                runs=tuple(vote["runs"]),
            )
            for vote in votes
        ]
    )
    assert [(one["numVotes"], one["numRuns"]) for one in in_page] == [
        (one.num_votes, one.num_runs) for one in in_report
    ]
    to_go = viewer.page.evaluate(
        "([votes, num]) => optbench.votesToGo(optbench.strengths(votes), num)", [votes, num]
    )
    assert (to_go == 0) == in_report[0].is_preferred, "decided in both or in none"
    for one, other in zip(in_page, in_report, strict=True):
        assert one["strength"] == pytest.approx(other.strength, abs=1e-6)
        assert one["low"] == pytest.approx(other.low, abs=1e-3)
        assert one["high"] == pytest.approx(other.high, abs=1e-3)


def vote_by_taste(viewer: Viewer, num: int, taste: list[str], certainty: float) -> None:
    """Cast votes for the run whose name begins with what is liked more, mostly."""
    drawn = random.Random(3)
    start(viewer)
    viewer.page.evaluate(
        "optbench.app.voting.endsAt = Infinity"
    )  # a script may be slower than people
    for num_given in range(1, num + 1):
        viewer.page.locator(READY).wait_for()
        runs = viewer.page.evaluate("optbench.app.voting.pair.cells.map((cell) => cell.run.name)")
        ranks = [next(i for i, one in enumerate(taste) if run.startswith(one)) for run in runs]
        is_left = (ranks[0] < ranks[1]) == (drawn.random() < certainty)
        viewer.page.locator(READY).press("ArrowLeft" if is_left else "ArrowRight")
        wait_until(viewer.page, f"optbench.app.voting.voting.own.length === {num_given}")


@pytest.mark.slow
def test_a_hundred_votes_find_a_known_preference(browser: Any, tmp_path: Path) -> None:
    sweep = tmp_path / "known"
    shape = Shape(
        num_epochs=1,
        dims=(4,),
        num_optimizers=4,
        train_seeds=(1, 2),
        prompts=("a", "b", "c"),
        seeds=(1, 2, 3),
    )
    make_sweep(sweep, shape)
    index = build_report(sweep)
    context = browser.new_context(viewport={"width": 1500, "height": 1300})
    viewer = Viewer(context.new_page()).open(index)
    taste = ["prodigy", "lion", "adamw", "dadaptlion"]
    vote_by_taste(viewer, 100, taste, certainty=0.98)
    viewer.press("Escape")
    names = viewer.page.locator(".vb-bars li .vb-name").all_inner_texts()
    assert names[0] == "prodigy"
    assert names[-1] == "dadaptlion"
    assert viewer.page.locator(".vb-togo").inner_text().startswith("Decided: prodigy")
    text = download(viewer, "save votes as JSON", tmp_path)
    (sweep / "scores").mkdir()
    (sweep / "scores" / "me.json").write_text(text)
    rebuilt = build_report(sweep).read_text()
    assert "People prefer prodigy" in rebuilt
    assert viewer.faults == []
    context.close()


def test_others_vote_in_one_file_that_sends_nothing(
    context: Any, index: Path, tmp_path: Path
) -> None:
    sweep = tmp_path / "demo"
    shutil.copytree(index.parent.parent, sweep)
    assert share.main(["--vote", str(sweep)]) == 0
    page = sweep / "share" / "demo-vote.html"
    assert str(tmp_path) not in page.read_text(), "no paths of the machine"
    viewer = Viewer(context.new_page())
    viewer.page.goto(page.as_uri())
    viewer.page.get_by_label("Your name").fill("Ben")
    start(viewer)
    seen = viewer.page.evaluate("document.body.innerText").lower()
    assert not [label for label in ("adamw", "lion", "dim") if label in seen]
    viewer.press("ArrowLeft")
    viewer.page.locator(READY).wait_for()
    viewer.press("ArrowDown", "Escape")
    assert "adamw network.dim=4" in viewer.page.locator("dialog.vb").inner_text()
    text = download(viewer, "save votes as JSON", tmp_path)
    assert viewer.faults == []
    assert [url for url in viewer.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    (sweep / "scores").mkdir()
    (sweep / "scores" / "ben.json").write_text(text)
    votes = load(sweep).votes
    assert list(votes["rater"]) == ["Ben", "Ben"]
    assert list(votes["winner"]) == ["left", "tie"]
    assert load(sweep).problems == ()


def test_a_vote_needs_two_settings(tmp_path: Path) -> None:
    make_sweep(tmp_path / "one", Shape(num_epochs=1, num_optimizers=1, dims=(4,)))
    with pytest.raises(DatasetError, match="no two settings"):
        vote_page(tmp_path / "one")


SIMULATED = """([truth, numVotes, numSessions, ofCells, seed]) => {
  // mulberry32, so that every run of the test draws the same
  let state = seed;
  const random = () => {
    state = (state + 0x6D2B79F5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  const normal = () => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
  const pairs = truth.flatMap((_, i) => truth.slice(i + 1).map((__, j) => [i, i + 1 + j]));
  const mean = truth.reduce((sum, one) => sum + one, 0) / truth.length;
  let held = 0, num = 0, led = 0;
  for (let session = 0; session < numSessions; session += 1) {
    const cells = truth.map(() => Array.from({ length: 8 }, () => ofCells * normal()));
    const votes = [];
    for (let vote = 0; vote < numVotes; vote += 1) {
      const [first, second] = optbench.choosePair(votes, pairs, truth.length, random);
      const cell = Math.floor(random() * 8);
      const gap = truth[first] + cells[first][cell] - truth[second] - cells[second][cell];
      votes.push({ first, second, winner: random() < 1 / (1 + Math.exp(-gap)) ? 0 : 1,
        cell: String(cell), runs: [String(first), String(second)] });
    }
    const strengths = optbench.strengths(votes);
    led += strengths[0].index === 0;
    for (const one of strengths) {
      num += 1;
      held += one.low <= truth[one.index] - mean && truth[one.index] - mean <= one.high;
    }
  }
  return [100 * held / num, 100 * led / numSessions];
}"""


@pytest.mark.slow
@pytest.mark.parametrize("of_cells", [0.0, 1.0])
@pytest.mark.parametrize("truth", [[0.0, 0.0, 0.0, 0.0], [1.0, 0.8, -0.9, -0.9]])
def test_choosing_close_pairs_leaves_the_intervals_valid(
    viewer: Viewer, truth: list[float], of_cells: float
) -> None:
    for num_votes in (40, 100):
        held, _ = viewer.page.evaluate(SIMULATED, [truth, num_votes, 150, of_cells, 7])
        assert held >= 92, (num_votes, held)


@pytest.mark.slow
def test_close_pairs_first_finds_a_leader_at_least_as_often(viewer: Viewer) -> None:
    _, led = viewer.page.evaluate(SIMULATED, [[0.8, 0.3, -0.3, -0.8], 40, 200, 0.0, 9])
    assert led >= 70
