"""`optbench resize` from the command line to the files, and merges."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from optbench.cli.resize.command import main
from optbench.errors import ConfigError
from optbench.lora.resize import svd_cache
from optbench.lora.resize.resize import ResizeSpec, write_resized
from optbench.lora.resize.rules import SizeRule
from optbench.lora.resize.svd_cache import SvdCache
from optbench.lora.svd import Factors, decompose
from optbench.storage import files, rundir
from tests.builders.lora_files import LINEAR, deltas, random_tensors, read_file, write_lora

BARE = ["render=off", "validate=off"]  # files alone: no base is loaded


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_lora(Path("big.safetensors"), dtype=torch.float16)


def made(*patterns: str) -> list[Path]:
    return sorted(path for pattern in patterns for path in Path("runs").glob(pattern))


def test_a_sweep_writes_files_records_and_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "source=big.safetensors",
        "method=sv_ratio",
        "param=2,8",
        "num_threads=1",
        "-m",
        *BARE,
    ]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "runs/resize-param/report/index.html"
    resized = made("*/*/lora/*.safetensors")
    assert [re.sub("-.{8}$", "", path.stem) for path in resized] == [
        "big-sv_ratio2",
        "big-sv_ratio8",
    ]
    assert resized[0].stat().st_size < resized[1].stat().st_size
    for path in resized:
        run_dir = path.parents[1]
        assert path.stem == run_dir.name
        assert rundir.read_status(run_dir).status == "done"
        (row,) = files.read_rows(run_dir / "epochs.jsonl")
        whole, kept = (
            sum(float(one.square().sum()) for one in deltas(file).values())
            for file in (Path("big.safetensors"), path)
        )
        # fp16 rounds every number by up to 2^-11 of itself.
        assert row["retained_energy"] == pytest.approx(kept / whole, rel=2e-3)
        assert 0 < row["least_retained_energy"] <= row["retained_energy"] < 1
        assert row["lora_bytes"] == path.stat().st_size
        layers = files.read_rows(run_dir / "layers.jsonl")
        assert {one["layer"] for one in layers} == deltas(path).keys()
        assert all(len(one["singular_values"]) >= one["new_dim"] for one in layers)
        assert run_dir.name in out
    before = [path.stat().st_mtime_ns for path in resized]
    assert main(arguments) == 0  # nothing is made twice
    assert [path.stat().st_mtime_ns for path in resized] == before
    resized[0].unlink()
    assert main(arguments) == 0
    assert resized[0].is_file()
    (row,) = files.read_rows(resized[0].parents[1] / "epochs.jsonl")


def test_every_epoch_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    lora = Path("run") / "lora"
    lora.mkdir(parents=True)
    for epoch in (1, 2):
        write_lora(lora / f"run-{epoch:06d}.safetensors", seed=epoch)
    assert main(["source=run", "new_dim=2", "num_threads=1", *BARE]) == 0
    first, second, last = made("*/*/lora/*.safetensors")
    assert (first.stem[-7:], second.stem[-7:]) == ("-000001", "-000002")
    assert last.stem == last.parents[1].name
    assert last.samefile(second)
    assert read_file(last)[1]["ss_output_name"] == last.stem
    rows = files.read_rows(last.parents[1] / "epochs.jsonl")
    assert [row["epoch"] for row in rows] == [1, 2]
    assert capsys.readouterr().out.splitlines()[-1] == "runs/resize-single/report/index.html"


def test_all_bad_sources_are_named_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tensors = random_tensors()
    tensors[f"{LINEAR}.lora_up.weight"][0, 0] = torch.nan
    write_lora(Path("nan.safetensors"), tensors)
    write_lora(Path("dora.safetensors"), {**random_tensors(), "x.dora_scale": torch.ones(1)})
    sources = "source=big.safetensors,nan.safetensors,dora.safetensors"
    assert main(["-m", sources, "new_dim=2"]) == 2
    err = capsys.readouterr().err
    assert f"{LINEAR}.lora_up.weight" in err
    assert "DoRA" in err
    assert not made("*/*/lora/*")


def test_files_that_do_not_merge_are_refused_before_anything_is_written(
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_lora(Path("b.safetensors"), layers={LINEAR: (20, (13,))})
    sources = "source=[big.safetensors,b.safetensors]"
    assert main([*BARE, sources, "weights=[0.5,0.5]", "new_dim=2"]) == 2
    err = capsys.readouterr().err
    assert LINEAR in err
    assert "one family" in err
    assert not made("*/*/*")


def test_one_that_fails_leaves_the_others_and_its_reason(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tensors = random_tensors()
    tensors[f"{LINEAR}.lora_up.weight"] *= 1e6
    write_lora(Path("large.safetensors"), tensors)
    arguments = ["-m", "source=large.safetensors", "new_dim=2", "num_threads=1", *BARE]
    assert main([*arguments, "save_precision=fp16,bf16"]) == 1
    assert "too large for torch.float16" in capsys.readouterr().err
    statuses = [rundir.read_status(path.parent).status for path in made("*/*/status.json")]
    assert sorted(statuses) == ["done", "failed"]


def test_bad_settings_leave_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["source=big.safetensors", "method=sv_ratio", "param=0.1"]) == 2
    assert "found 0.1" in capsys.readouterr().err


def test_the_config_can_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--cfg", "job", "--resolve", "source=x", "method=sv_fro"]) == 0
    assert "param: 0.9" in capsys.readouterr().out


def test_one_source_is_taken_apart_once_for_a_whole_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ["-m", "source=big.safetensors", "method=sv_ratio", "param=2,4,8", "num_threads=2"]
    calls: list[str] = []
    monkeypatch.setattr(svd_cache, "decompose", lambda one: calls.append("") or decompose(one))
    assert main([*whole, "runs_dir=together", *BARE]) == 0
    assert len(calls) == len(deltas(Path("big.safetensors")))
    assert not list(Path("together/.cache/decompositions").glob("*"))
    assert (
        main(["source=big.safetensors", "method=sv_ratio", "param=4", "runs_dir=alone", *BARE]) == 0
    )
    (alone,) = Path("alone").glob("*/*/lora/*.safetensors")
    (together,) = Path("together").glob(f"*/*/lora/{alone.name}")
    assert alone.read_bytes() == together.read_bytes()


def test_a_damaged_decomposition_is_made_again(tmp_path: Path) -> None:
    factors = Factors(up=torch.randn(6, 3), down=torch.randn(3, 5), alpha=1.0)
    cache = SvdCache(tmp_path / "kept")
    first = cache.decompose("a", factors)
    (kept,) = (tmp_path / "kept").iterdir()
    for content in (b"", kept.read_bytes()[:-4], b"x" * 99):
        kept.write_bytes(content)
        again = cache.decompose("a", factors)
        assert again.singular_values == first.singular_values
        assert torch.equal(again.core_left, first.core_left)


def test_threads_change_no_byte_of_a_file() -> None:
    rule = SizeRule(method="sv_fro", param=0.9, dim=None, conv_dim=None, compat="v0.11")
    wanted = ResizeSpec(name="small", rule=rule, precision="fp16", weights=None)
    before = torch.get_num_threads()
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            write_resized([Path("big.safetensors")], Path(f"{number}.safetensors"), wanted)
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(before)
    assert Path("1.safetensors").read_bytes() == Path("3.safetensors").read_bytes()


def test_a_pattern_stands_for_the_one_file_it_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["source=b*.safetensors", "new_dim=2", *BARE]) == 0
    assert made("*/big-dim2-*/lora/*")
    write_lora(Path("bag.safetensors"))
    assert main(["source=b*.safetensors", "new_dim=2", *BARE]) == 2
    assert "which stands for 2: bag.safetensors, big.safetensors" in capsys.readouterr().err


def test_the_original_is_no_run_of_its_own_without_pictures_and_losses() -> None:
    assert main(["source=big.safetensors", "new_dim=2", *BARE]) == 0
    (run,) = made("*/*/config.yaml")
    assert not run.parent.name.startswith("original")


# Merges


def merge(names: list[str], weights: tuple[float, ...], dim: int) -> Path:
    rule = SizeRule(method="none", param=None, dim=dim, conv_dim=None, compat="v0.11")
    wanted = ResizeSpec(name="merged", rule=rule, precision="float", weights=weights)
    write_resized([Path(name) for name in names], Path("merged.safetensors"), wanted)
    return Path("merged.safetensors")


def test_a_merge_is_the_weighted_sum_of_all_layers() -> None:
    tensors = random_tensors(seed=2, dim=3, alpha=None)
    only_here = random_tensors(seed=4, dim=5, layers={"lora_unet_only_here": (6, (7,))})
    write_lora(Path("a.safetensors"), {**tensors, **only_here}, metadata={"x": "1", "y": "1"})
    write_lora(Path("b.safetensors"), seed=3, dim=8, metadata={"x": "1", "y": "2"})
    weights = (0.7, -0.25)
    path = merge(["a.safetensors", "b.safetensors"], weights, 11)
    found, parts = deltas(path), [deltas(Path(f"{name}.safetensors")) for name in "ab"]
    assert found.keys() == parts[0].keys() | parts[1].keys()
    for name, delta in found.items():
        expected = sum(
            weight * part[name] for weight, part in zip(weights, parts, strict=True) if name in part
        )
        assert isinstance(expected, torch.Tensor)
        limit = 1e-6 * float(expected.norm())
        torch.testing.assert_close(delta, expected, rtol=0, atol=limit)
    metadata = read_file(path)[1]
    assert metadata["x"] == "1"
    assert "y" not in metadata  # the sources do not agree
    assert metadata["ss_training_comment"].startswith("merged from 2 LoRAs; ")
    assert json.loads(metadata["optbench.resize"])["weights"] == [0.7, -0.25]


def test_a_merge_cut_to_a_dim_is_the_nearest_of_that_dim() -> None:
    write_lora(Path("b.safetensors"), seed=3)
    whole = deltas(merge(["big.safetensors", "b.safetensors"], (0.5, 0.5), 16))
    cut = deltas(merge(["big.safetensors", "b.safetensors"], (0.5, 0.5), 2))
    for name, delta in whole.items():
        lost = float(torch.linalg.svdvals(delta)[2:].norm())
        assert float((delta - cut[name]).norm()) == pytest.approx(lost, rel=1e-4)


def test_merging_a_lora_with_itself_is_itself() -> None:
    whole = deltas(Path("big.safetensors"))
    for name, delta in deltas(merge(["big.safetensors"] * 2, (0.5, 0.5), 8)).items():
        limit = 1e-5 * float(whole[name].norm())
        torch.testing.assert_close(delta, whole[name], rtol=0, atol=limit)


def test_loras_of_two_families_do_not_merge() -> None:
    other = random_tensors(layers={LINEAR: (20, (13,))})
    write_lora(Path("b.safetensors"), other)
    with pytest.raises(ConfigError) as caught:
        merge(["big.safetensors", "b.safetensors"], (1.0, 1.0), 4)
    assert LINEAR in str(caught.value)
    assert "one family" in str(caught.value)
