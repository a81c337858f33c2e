"""No bytes break a reader: captions, prompts, LoRA files, records and metadata are read or refused.

`make torture` runs these with thousands of examples each.
"""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from optbench import analysis
from optbench.analysis.score_files import read_scores
from optbench.cli.trainers.kohya.import_script import convert
from optbench.cli.trainers.kohya.read_script import read_training
from optbench.config import sweep
from optbench.data import read_dataset
from optbench.data.captions import draw_caption, longest_forms
from optbench.errors import OptbenchError, Problem
from optbench.lora.adapters.apply import AdapterFile, applied, check_adapters, misfits
from optbench.lora.file import LoraFile, read_lora
from optbench.lora.initial_weights import initial_weights_of
from optbench.models.text import prompt_grammar
from optbench.records import LoraTarget
from optbench.storage import files, rundir
from optbench.storage.rundir import RunDir
from optbench.storage.safetensors_header import read_header
from tests.builders.dataset_options import PLAIN as DATA
from tests.builders.network_options import PLAIN_NETWORK

fuzzed = settings(suppress_health_check=list(HealthCheck))

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.floats()
    | st.integers()
    | st.sampled_from([10**400, -(10**400)])
    | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4)
    ),
    max_leaves=8,
)

TEXT = st.text(max_size=60) | st.text("{}|,()[]:\\\\\"'$=\n<>&", max_size=60)
NAMES = ("lora_unet_a.lora_down.weight", "lora_unet_a.lora_up.weight", "lora_unet_a.alpha")


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


def valid_lora(metadata: dict[str, str] | None = None) -> bytes:
    tensors = dict(zip(NAMES, (torch.ones(2, 8), torch.ones(8, 2), torch.tensor(1.0)), strict=True))
    return safetensors.torch.save(tensors, metadata=metadata)


def with_header(header: object) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(132)


def start_from(path: Path) -> object:
    return initial_weights_of(replace(PLAIN_NETWORK, weights=str(path)))


def apply_anyones(path: Path) -> object:
    """Read a file as any adapter there is, and put it into a layer if it says that it fits."""
    check_adapters([path])
    target = LoraTarget(
        name="lora_unet_a", module=torch.nn.Linear(8, 8), part="unet", needs_conv_dim=False
    )
    if problems := misfits([target], AdapterFile(path), base="small"):
        return problems
    with applied([target], [(AdapterFile(path), 0.5)]):
        return None


def open_whole(path: Path) -> object:
    return LoraFile(path).metadata


LORA_READERS: tuple[Callable[[Path], object], ...] = (
    read_lora,
    start_from,
    open_whole,
    apply_anyones,
)
ADAPTER_PARTS = st.sampled_from(
    [f"lora_{part}" for part in ("up.weight", "down.weight", "mid.weight", "A.weight", "B.weight")]
    + [f"hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")]
    + [f"lokr_{part}" for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")]
    + ["alpha", "dora_scale", "lora_magnitude_vector", "diff", "oft_blocks"]
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "F8_E4M3", "I64", "X"]) | JSON,
        "shape": st.lists(st.integers(-1, 9), max_size=4) | JSON,
        "data_offsets": st.lists(st.integers(-1, 140), min_size=2, max_size=2) | JSON,
    }
)
HEADER = st.dictionaries(st.sampled_from([*NAMES, "__metadata__"]), ENTRY | JSON, max_size=4) | JSON


@fuzzed
@given(content=st.binary(max_size=200) | HEADER.map(with_header))
def test_any_file_is_a_lora_or_refused(content: bytes) -> None:
    with folder() as place:
        path = place / "a.safetensors"
        path.write_bytes(content)
        for read in LORA_READERS:
            with contextlib.suppress(OptbenchError):
                read(path)
        with contextlib.suppress(ValueError):
            read_header(path)


@fuzzed
@given(place=st.integers(0, 10_000), value=st.integers(0, 255), length=st.integers(0, 10_000))
def test_a_damaged_lora_is_read_or_refused(place: int, value: int, length: int) -> None:
    content = bytearray(valid_lora({"ss_output_name": "a", "ss_network_dim": "2"}))
    content[place % len(content)] = value
    with folder() as where:
        path = where / "a.safetensors"
        path.write_bytes(content[: max(0, len(content) - length % (2 * len(content)))])
        for read in LORA_READERS:
            with contextlib.suppress(OptbenchError):
                read(path)


@pytest.mark.parametrize("text", [b"[" * 90_000, b'{"a":' * 90_000, b'{"a":{"shape":[1e999]}}'])
def test_a_header_that_nests_without_end_or_counts_to_infinity_is_refused(
    tmp_path: Path, text: bytes
) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    for read in LORA_READERS:
        with pytest.raises(OptbenchError):
            read(path)
    with pytest.raises(ValueError, match="safetensors"):
        read_header(path)


@fuzzed
@given(
    metadata=st.dictionaries(
        st.sampled_from(["ss_output_name", "ss_network_args", "ss_network_dim", "sshs_model_hash"])
        | st.text(max_size=8),
        TEXT | JSON.map(json.dumps),
        max_size=4,
    )
)
def test_any_metadata_is_read(metadata: dict[str, str]) -> None:
    """And nothing in it can be a path: a name of a LoRA names no file of ours."""
    with folder() as place:
        path = place / "a.safetensors"
        path.write_bytes(valid_lora(metadata))
        assert read_lora(path)[1] == metadata
        start = initial_weights_of(replace(PLAIN_NETWORK, weights=str(path)))
        assert start is not None
        assert start.path == path
        open_whole(path)


@fuzzed
@given(
    shapes=st.dictionaries(
        ADAPTER_PARTS, st.lists(st.sampled_from([1, 2, 2, 4, 8, 8]), max_size=4), max_size=7
    ),
    told=JSON,
)
def test_any_mixture_of_adapter_parts_is_applied_or_refused(
    shapes: dict[str, list[int]], told: object
) -> None:
    tensors = {f"lora_unet_a.{part}": torch.ones(shape) for part, shape in shapes.items()}
    metadata = {"lora_adapter_metadata": json.dumps(told)}
    with folder() as place:
        path = place / "a.safetensors"
        path.write_bytes(safetensors.torch.save(tensors, metadata=metadata))
        with contextlib.suppress(OptbenchError):
            apply_anyones(path)


@fuzzed
@given(content=st.binary(max_size=80) | TEXT.map(str.encode))
def test_any_caption_is_read_or_refused(content: bytes) -> None:
    with folder() as place:
        Image.new("RGB", (64, 64)).save(place / "a.png")
        (place / "a.txt").write_bytes(content)
        data = replace(DATA, dir=str(place), num_repeats=1, resolution=(64, 64), min_bucket_reso=64)
        for is_wild in (False, True):
            with contextlib.suppress(OptbenchError):
                read_dataset(replace(data, enable_wildcard=is_wild), pixels_per_latent=8)


@fuzzed
@given(caption=TEXT, mark=st.text(max_size=2), separator=st.text(min_size=1, max_size=2))
def test_any_caption_becomes_what_is_trained_on(caption: str, mark: str, separator: str) -> None:
    options = replace(
        DATA,
        enable_wildcard=True,
        shuffle_caption=True,
        keep_tokens=1,
        caption_tag_dropout_rate=0.5,
        caption_separator=separator,
        keep_tokens_separator=mark or None,
        secondary_separator="|",
        caption_prefix=mark or None,
    )
    assert longest_forms(caption, options)
    assert isinstance(draw_caption(caption, options, seed=1, place=(1, "key", 0)), str)


@fuzzed
@given(
    lines=st.lists(JSON.map(json.dumps) | TEXT | st.just('{"file_name": "../a.png"}'), max_size=4)
)
def test_any_metadata_jsonl_is_read_or_refused(lines: list[str]) -> None:
    with folder() as place:
        Image.new("RGB", (64, 64)).save(place / "a.png")
        (place / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8", errors="replace")
        data = replace(DATA, dir=str(place), num_repeats=1, resolution=(64, 64), min_bucket_reso=64)
        with contextlib.suppress(OptbenchError):
            read_dataset(data, pixels_per_latent=8)


@fuzzed
@given(text=TEXT)
def test_any_prompt_on_the_command_line_is_taken_or_refused(text: str) -> None:
    problems: list[Problem] = []
    asked = sweep.parsable([f"prompts.prompts.a.text={text}"], problems)
    sweep.with_quoted_texts(asked, problems)


@fuzzed
@given(text=st.text("()[]:|\\\\<>lora.,19 BREAK", max_size=120) | TEXT, num_steps=st.integers(1, 9))
def test_any_prompt_is_painted_or_refused(text: str, num_steps: int) -> None:
    if not prompt_grammar.mistakes(text):
        plain, loras = prompt_grammar.without_loras(text)
        assert all(abs(lora.strength) <= 1e6 for lora in loras)
        for one in prompt_grammar.at_steps(plain, num_steps):
            spans = [span for section in prompt_grammar.read_sections(one) for span in section]
            assert all(span.text and math.isfinite(span.weight) for span in spans)
    prompt_grammar.emphasized(text)
    prompt_grammar.is_balanced(text)


CELLS = st.dictionaries(
    st.sampled_from(
        ["run", "epoch", "prompt", "width", "height", "seed", "score", "note", "rater"]
    ),
    JSON | st.sampled_from(["a", 1, 512, 50]),
    max_size=9,
)


@fuzzed
@given(
    content=st.dictionaries(
        st.sampled_from(["scores", "votes", "rater", "schema"]), st.lists(CELLS) | JSON
    ).map(json.dumps)
    | TEXT,
    rows=TEXT | st.lists(TEXT, max_size=4).map("\n".join),
)
def test_any_scores_are_read_or_said(content: str, rows: str) -> None:
    with folder() as place:
        (place / "scores").mkdir()
        (place / "scores" / "a.json").write_text(content, "utf-8", "replace")
        header = "rater,run,epoch,prompt,width,height,seed,score,note\n"
        (place / "scores" / "b.csv").write_text(header + rows, "utf-8", "replace")
        (place / "scores" / "c.csv").write_text(rows, "utf-8", "replace")
        read_scores(place, {"a": None})


@fuzzed
@given(content=st.binary(max_size=120) | st.lists(JSON, max_size=3).map(
    lambda rows: b"".join(json.dumps(row).encode() + b"\n" for row in rows)
))  # fmt: skip
def test_any_records_are_read_or_refused(content: bytes) -> None:
    with folder() as place:
        path = place / "a.jsonl"
        path.write_bytes(content)
        for read in (files.read_rows, files.read_json, files.read_sealed_text):
            with contextlib.suppress(OptbenchError):
                read(path)  # type: ignore[operator]
        files.readable_rows(path)


@fuzzed
@given(row=st.dictionaries(st.text(max_size=9), JSON, max_size=5))
def test_records_come_back_from_anything(row: dict[str, Any]) -> None:
    with folder() as place:
        files.append_rows(place / "a.jsonl", [row, {"epoch": 1}])
        assert files.read_rows(place / "a.jsonl")[-1] == {"epoch": 1}
        files.write_json(place / "a.json", row)
        files.read_json(place / "a.json")


@settings(fuzzed, max_examples=max(6, fuzzed.max_examples // 10))  # frames take their time
@given(
    row=st.dictionaries(
        st.sampled_from(["epoch", "step", "mean_loss", "run", "sweep", "seconds_train"]) | TEXT,
        JSON,
        max_size=5,
    ),
    config=st.dictionaries(st.sampled_from(["seed", "optimizer", "network"]), JSON, max_size=3),
    status=JSON,
)
def test_any_run_folder_becomes_frames(row: Any, config: Any, status: Any) -> None:
    with folder() as place:
        run = RunDir(place / "sweep" / "run")
        run.path.mkdir(parents=True)
        run.config_path.write_text(json.dumps(config))
        run.status_path.write_text(json.dumps(status))
        run.provenance_path.write_text(json.dumps(status))
        for path in (run.steps_path, run.epochs_path, run.layers_path, run.validation_path):
            path.write_text(json.dumps(row) + "\n")
        assert list(analysis.load(place).runs["run"]) == ["run"]
        rundir.read_status(run.path)


@fuzzed
@given(text=TEXT | st.dictionaries(st.text(max_size=5), st.text(max_size=9)).map(str))
def test_any_settings_of_kohyas_trainer_are_read_or_refused(text: str) -> None:
    with folder() as place:
        for name in ("a.toml", "a.sh"):
            (place / name).write_text(text, encoding="utf-8", errors="replace")
            with contextlib.suppress(OptbenchError):
                convert(read_training(place / name))
