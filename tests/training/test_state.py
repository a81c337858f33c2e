"""What a killed run goes on from: the last whole epoch, bit for bit, or a refusal that says why."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from optbench.errors import DamagedFileError, LaterSchemaError
from optbench.lora.network import LoraNetwork
from optbench.optim.stepping import BuiltOptimizer
from optbench.schema import OptimizerOptions
from optbench.storage.rundir import RunDir
from optbench.training.lane import FinishedEpoch, Lane
from optbench.training.state import (
    forget_previous,
    read_state,
    state_files,
    write_state,
)
from tests.builders.small_training import (
    ADAMW,
    AVERAGED,
    DADAPTED,
    SGD,
    SmallBase,
    assert_equal,
    copies_of,
    make_network,
    make_optimizer,
    train_one,
)


class Point:
    """A training at some moment."""

    def __init__(
        self, options: OptimizerOptions = ADAMW, *, epochs: int = 0, **changes: Any
    ) -> None:
        base = SmallBase()
        self.network: LoraNetwork = make_network(base, filled=epochs > 0, **changes)
        self.optimizer: BuiltOptimizer = make_optimizer(self.network, options)
        if epochs:
            train_one(base, self.network, self.optimizer, epochs=epochs)
        self.scaler: torch.amp.GradScaler | None = None

    @property
    def lane(self) -> Lane:
        return Lane(network=self.network, optimizer=self.optimizer, scaler=self.scaler)

    def write(self, run: RunDir, epoch: int = 1, row: dict[str, Any] | None = None) -> None:
        write_state(run, FinishedEpoch(epoch=epoch, step=3 * epoch, row=row), self.lane)

    def read(self, run: RunDir) -> FinishedEpoch | None:
        for path in state_files(run)[:1]:
            state = read_state(path)
            state.restore_into(self.lane)
            return state.finished
        return None


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run")


def file_of(run: RunDir) -> Path:
    return run.state_dir / "last.pt"


def tensors_in(state: Any) -> Iterator[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from tensors_in(value)


def test_a_run_without_a_state_begins_at_its_beginning(run: RunDir) -> None:
    point = Point()
    before = copies_of(point.network)
    assert point.read(run) is None
    assert_equal(copies_of(point.network), before)
    assert not run.path.exists()


@pytest.mark.parametrize("options", [ADAMW, DADAPTED, AVERAGED, SGD], ids=lambda one: one.target)
def test_what_is_read_is_what_was_written(run: RunDir, options: OptimizerOptions) -> None:
    row = {"epoch": 2, "mean_loss": 0.1, "norm/max_key_norm": 1.5, "note": None}
    point = Point(options, epochs=2)
    point.write(run, epoch=2, row=row)
    other = Point(options)
    assert other.read(run) == FinishedEpoch(epoch=2, step=6, row=row)
    assert_equal(copies_of(other.network), copies_of(point.network))
    assert other.optimizer.rates() == point.optimizer.rates()
    found, expected = (one.optimizer.optimizer.state_dict()["state"] for one in (other, point))
    assert_equal(list(tensors_in(found)), list(tensors_in(expected)))
    assert found.keys() == expected.keys()


def test_the_loss_scale_goes_on_too(run: RunDir) -> None:
    point, other = Point(), Point()
    for one, scale in ((point, 2.0**7), (other, 2.0**16)):
        one.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        one.scaler.scale(torch.ones(1))  # it begins when it is first used
    point.write(run)
    other.read(run)
    assert other.scaler is not None
    assert other.scaler.get_scale() == 2.0**7


@pytest.mark.parametrize("has_links", [True, False])
def test_the_latest_two_epochs_are_kept_until_the_run_is_done(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    point = Point(epochs=1)
    for epoch in (1, 2, 3):
        point.write(run, epoch=epoch)
    assert [read_state(path).finished.epoch for path in state_files(run)] == [3, 2]
    assert sorted(path.name for path in run.state_dir.iterdir()) == ["last.pt", "previous.pt"]
    forget_previous(run)
    assert state_files(run) == [file_of(run)]
    read = Point().read(run)
    assert read is not None
    assert read.epoch == 3


def test_killed_between_its_two_moves_a_state_is_written_as_ever(run: RunDir) -> None:
    """Both names belong to one file then, which a rename of one to the other would not touch."""
    point = Point(epochs=1)
    point.write(run, epoch=1)
    os.link(file_of(run), run.state_dir / "previous.pt")
    point.write(run, epoch=2)
    assert [read_state(path).finished.epoch for path in state_files(run)] == [2, 1]
    assert sorted(path.name for path in run.state_dir.iterdir()) == ["last.pt", "previous.pt"]


def test_a_state_that_could_not_be_written_whole_leaves_the_one_before(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = Point(epochs=1)
    point.write(run, epoch=1)
    before = file_of(run).read_bytes()

    def no_space_left(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", no_space_left)
        with pytest.raises(OSError, match="No space left"):
            point.write(run, epoch=2)
    assert file_of(run).read_bytes() == before
    read = Point().read(run)
    assert read is not None
    assert read.epoch == 1


# Damage


def assert_refused(run: RunDir) -> None:
    """The file is named, and nothing of it is taken over."""
    point = Point()
    before = copies_of(point.network)
    with pytest.raises(DamagedFileError) as caught:
        point.read(run)
    (problem,) = caught.value.problems
    assert problem.where == str(file_of(run))
    assert "sets it aside" in problem.fix
    assert_equal(copies_of(point.network), before)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.99])
def test_a_state_cut_short_is_refused(run: RunDir, share: float) -> None:
    Point(epochs=1).write(run)
    file = file_of(run)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    assert_refused(run)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"epoch: 1\n" * 50,
        bytes(7000),  # what a file system may leave of a file after a power cut
    ],
    ids=["nothing", "words", "zeros"],
)
def test_a_file_that_is_no_state_is_refused(run: RunDir, content: bytes) -> None:
    run.state_dir.mkdir(parents=True)
    (run.state_dir / "last.pt").write_bytes(content)
    assert_refused(run)


@pytest.mark.parametrize("content", [{}, {"epoch": 1, "step": 3}, [], torch.zeros(3)], ids=str)
def test_a_state_without_its_parts_is_refused(run: RunDir, content: Any) -> None:
    run.state_dir.mkdir(parents=True)
    torch.save(content, run.state_dir / "last.pt")
    assert_refused(run)


def test_one_wrong_bit_in_a_weight_is_noticed(run: RunDir) -> None:
    point = Point(epochs=1)
    point.write(run)
    file = file_of(run)
    content = bytearray(file.read_bytes())
    weight = point.network.state_dict()["lora_unet_out.lora_down.weight"]
    content[content.index(weight.numpy().tobytes())] ^= 1
    file.write_bytes(content)
    assert_refused(run)


class Intruder:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (exec, ("import pathlib; pathlib.Path('intruded').write_text('x')",))


def sealed(content: Any) -> bytes:
    """Return the bytes of a state file as a stranger could make one, with the right digest."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue()


def test_a_state_cannot_run_code(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runs folder is passed around like any other folder."""
    monkeypatch.chdir(tmp_path)
    run.state_dir.mkdir(parents=True)
    file_of(run).write_bytes(sealed({"epoch": Intruder()}))
    assert_refused(run)
    assert not Path("intruded").exists()


@pytest.mark.parametrize("content", [{}, {"epoch": 1}, [], 7], ids=str)
def test_a_sealed_state_without_its_parts_is_refused(run: RunDir, content: Any) -> None:
    run.state_dir.mkdir(parents=True)
    file_of(run).write_bytes(sealed(content))
    assert_refused(run)


def test_a_state_of_a_later_optbench_is_refused_in_words_and_left_alone(run: RunDir) -> None:
    Point(epochs=1).write(run)
    content = read_state(file_of(run)).content
    for schema, error in ((2, LaterSchemaError), (1, None), (None, None)):
        changed = {**content, "schema": schema}
        if schema is None:
            del changed["schema"]  # what schema 1 wrote at first
        file_of(run).write_bytes(sealed(changed))
        if error is None:
            assert read_state(file_of(run)).finished.epoch == 1
            continue
        with pytest.raises(error, match="update optbench"):
            read_state(file_of(run))


# The state of other settings


def test_the_state_of_another_network_is_refused_and_taken_over_nowhere(run: RunDir) -> None:
    Point(epochs=1).write(run)
    other = Point(dim=4)
    before = copies_of(other.network)
    with pytest.raises(DamagedFileError, match="num_parameters"):
        other.read(run)
    assert_equal(copies_of(other.network), before)
    assert not other.optimizer.optimizer.state


@pytest.mark.parametrize(
    "options", [SGD, replace(ADAMW, lr=0.5), replace(ADAMW, args={"weight_decay": 0.5})],
    ids=["class", "rate", "argument"],
)  # fmt: skip
def test_the_state_of_another_recipe_is_refused(run: RunDir, options: OptimizerOptions) -> None:
    Point(epochs=1).write(run)
    with pytest.raises(DamagedFileError, match="the settings it was saved with"):
        Point(options).read(run)


def test_the_state_of_a_longer_run_is_refused(run: RunDir) -> None:
    """Its schedule falls more slowly, so going on from it would be neither run."""
    Point(epochs=1).write(run)
    other = Point()
    other.optimizer = make_optimizer(other.network, ADAMW, total_steps=999)
    with pytest.raises(DamagedFileError):
        other.read(run)
