"""A stage of the pre-training: goes on after a kill, averages, rates."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optbench import rng
from tools.tinybase import stages


class Killed(BaseException):
    """What stops a test's stage where a kill would stop a process."""


@pytest.fixture
def save_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "_SAVE_EVERY_SECONDS", -1.0)


class Line:
    """A linear model with AdamW and an average, drawing its data by the step's index."""

    def __init__(self) -> None:
        self.model = nn.Linear(3, 2)
        for place, weight in enumerate(self.model.parameters()):
            weight.data = torch.randn(weight.shape, generator=torch.Generator().manual_seed(place))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.average = stages.WeightAverage(self.model.parameters(), decay=0.9)
        self.taken: list[int] = []
        self.losses: list[float] = []

    def step(self, step_index: int) -> Mapping[str, Tensor]:
        x = torch.randn(8, 3, generator=rng.generator(1, "tiny", step_index))
        loss = (self.model(x) - x[:, :2]).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.average.update()
        self.taken.append(step_index)
        self.losses.append(loss.item())
        return {"loss": loss, "one": torch.ones(())}

    def run(self, folder: Path, *, num_steps: int = 30, kill_at: int | None = None) -> Line:
        def step(step_index: int) -> Mapping[str, Tensor]:
            if step_index == kill_at:
                raise Killed
            return self.step(step_index)

        parts: dict[str, Any] = {
            "model": self.model,
            "optimizer": self.optimizer,
            "average": self.average,
        }
        stages.run_stage("line", folder, num_steps=num_steps, parts=parts, step=step)
        return self

    def killed(self, folder: Path, *, at: int) -> Line:
        with pytest.raises(Killed):
            self.run(folder, kill_at=at)
        return self

    def state(self) -> list[Tensor]:
        moments = self.optimizer.state_dict()["state"]
        return [
            *self.model.state_dict().values(),
            *self.average.state_dict()["mean"],
            *(value for one in moments.values() for value in one.values()),
        ]


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.usefixtures("save_always")
@pytest.mark.parametrize("kills", [(0,), (1,), (29,), (7, 7, 20)])
def test_a_killed_stage_ends_bit_identical_and_repeats_no_step(
    tmp_path: Path, kills: tuple[int, ...]
) -> None:
    (tmp_path / "straight").mkdir()
    straight = Line().run(tmp_path / "straight")
    taken = [step for at in kills for step in Line().killed(tmp_path, at=at).taken]
    last = Line().run(tmp_path)
    assert_equal(last.state(), straight.state())
    assert last.average.state_dict()["num_updates"] == 30
    assert taken + last.taken == list(range(30))


def test_a_stage_killed_before_its_first_checkpoint_begins_again(tmp_path: Path) -> None:
    """Checkpoints come every two minutes, and no step of this one takes so long."""
    assert Line().killed(tmp_path, at=20).taken == list(range(20))
    assert not (tmp_path / "line.state").exists()
    assert Line().run(tmp_path).taken == list(range(30))


@pytest.mark.usefixtures("save_always")
def test_a_kill_while_saving_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save_half(state: object, path: Path) -> None:
        path.write_bytes(b"PK half a file")
        raise Killed

    Line().killed(tmp_path, at=5)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save_half)
        with pytest.raises(Killed):
            Line().run(tmp_path)
    assert Line().run(tmp_path).taken == list(range(5, 30))


def test_a_finished_stage_takes_no_step_and_gives_its_weights(tmp_path: Path) -> None:
    first, again = Line().run(tmp_path), Line().run(tmp_path)
    assert again.taken == []
    assert_equal(again.state(), first.state())
    # Asked for more, it goes on from there.
    assert Line().run(tmp_path, num_steps=33).taken == [30, 31, 32]


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "line.jsonl").read_text().splitlines()]


def test_every_25_steps_are_averaged_into_one_record(tmp_path: Path) -> None:
    line = Line()
    line.run(tmp_path, num_steps=60)
    found = rows(tmp_path)
    assert [(row["step"], row["one"]) for row in found] == [(25, 1.0), (50, 1.0)]
    for row, start in zip(found, (0, 25), strict=True):
        expected = sum(line.losses[start : start + 25]) / 25
        assert row["loss"] == pytest.approx(expected, rel=1e-6)  # float32 sums


@pytest.mark.usefixtures("save_always")
def test_the_first_record_after_a_kill_is_a_mean_too(tmp_path: Path) -> None:
    Line().killed(tmp_path, at=10)
    Line().run(tmp_path)
    assert [row["one"] for row in rows(tmp_path)] == [1.0]


def test_the_average_follows_its_formula() -> None:
    live = nn.Parameter(torch.tensor([1.0, -2.0]))
    average = stages.WeightAverage([live], decay=0.5)
    expected = live.detach().clone()
    for age in range(1, 20):
        live.data += torch.tensor([0.5, 1.0]) * age
        average.update()
        decay = min(0.5, (1 + age) / (10 + age))  # young averages forget faster
        expected = decay * expected + (1 - decay) * live.detach()
        torch.testing.assert_close(average.state_dict()["mean"][0], expected)
    assert not torch.allclose(live, expected)
    average.copy_to_live()
    torch.testing.assert_close(live.detach(), expected)


def test_the_rate_warms_up_stays_and_falls() -> None:
    rates = [stages.falling_rate(index, 1000, peak=2.0) for index in range(1000)]
    assert rates[:100] == pytest.approx([0.02 * (index + 1) for index in range(100)])
    assert rates[99:501] == [2.0] * 402
    assert rates[750] == pytest.approx(1.0)
    assert all(late < early for early, late in itertools.pairwise(rates[500:991]))
    assert rates[990:] == pytest.approx([0.04] * 10)
    optimizer = torch.optim.SGD([{"params": [torch.ones(1)]}, {"params": [torch.ones(1)]}], lr=1)
    stages.set_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
