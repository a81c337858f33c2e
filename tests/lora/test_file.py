"""The LoRA file: equal bytes, whole or absent, kohya's hashes and metadata, bad files refused."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from pathlib import Path
from typing import Any, get_args

import hypothesis.strategies as st
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given
from torch import Tensor

from optbench.errors import DamagedFileError, DivergedError
from optbench.lora.file import SafetensorsFile, read_lora
from optbench.lora.save import save_lora
from optbench.schema import SavePrecision

DTYPES: dict[SavePrecision, torch.dtype] = {
    "float": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}


def some_tensors(size: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "lora_unet_b.lora_down.weight": torch.randn(4, size, 3, 3, generator=generator),
        "lora_unet_b.lora_up.weight": torch.randn(size, 4, 1, 1, generator=generator),
        "lora_unet_b.alpha": torch.tensor(2.3),
        "lora_te_a.lora_down.weight": torch.randn(4, size, generator=generator),
    }


METADATA = {"ss_output_name": 'Mirelle "\u00e9\u4e2d" <b>\n', "modelspec.title": "x", "ss_v2": "no"}


@pytest.mark.parametrize("precision", get_args(SavePrecision))
def test_saved_tensors_come_back(tmp_path: Path, precision: SavePrecision) -> None:
    path = tmp_path / "a.safetensors"
    tensors = some_tensors()
    save_lora(path, tensors, precision=precision, metadata=METADATA)
    found, metadata = read_lora(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == DTYPES[precision]  # alpha too
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name], tensor.to(DTYPES[precision]))
    assert metadata.items() >= METADATA.items()
    assert metadata.keys() - METADATA.keys() == {"sshs_model_hash", "sshs_legacy_hash"}
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_files_are_read_by_the_library_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_lora(path, some_tensors(), precision="fp16", metadata=METADATA)
    with safetensors.safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(some_tensors())
        assert file.metadata()["ss_output_name"] == METADATA["ss_output_name"]
        alpha = file.get_tensor("lora_unet_b.alpha")
    assert alpha.shape == ()
    assert alpha.dtype == torch.float16


def test_bytes_are_those_the_library_writes(tmp_path: Path) -> None:
    """With one key, sorted metadata and the library's own order are the same thing."""
    path = tmp_path / "a.safetensors"
    save_lora(path, some_tensors(), precision="float", metadata={})
    header, body = split(path.read_bytes())
    metadata = header["__metadata__"]
    for name, value in metadata.items():
        ours = safetensors.torch.save(some_tensors(), {name: value})
        assert split(ours)[1] == body
    assert list(metadata) == sorted(metadata)
    assert (len(path.read_bytes()) - len(body)) % 8 == 0


def split(blob: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", blob[:8])
    return json.loads(blob[8 : 8 + length]), blob[8 + length :]


def test_equal_contents_give_equal_files(tmp_path: Path) -> None:
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    many = {f"ss_key{index}": str(index) for index in range(50)}
    save_lora(first, some_tensors(), precision="fp16", metadata=many)
    tensors = dict(reversed(some_tensors().items()))
    save_lora(second, tensors, precision="fp16", metadata=dict(reversed(many.items())))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("size", [6, 40_000])
def test_hashes_are_kohyas(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.safetensors"
    save_lora(path, some_tensors(size), precision="float", metadata=METADATA)
    metadata = read_lora(path)[1]
    body = split(path.read_bytes())[1]
    assert metadata["sshs_model_hash"] == hashlib.sha256(body).hexdigest()
    # Only the ss_* metadata counts, so one key makes the library's own file predictable.
    one = {"ss_output_name": "\u00e9\u4e2d"}
    save_lora(path, some_tensors(size), precision="float", metadata={**one, "modelspec.title": "x"})
    whole = safetensors.torch.save(some_tensors(size), one)
    legacy = hashlib.sha256(whole[0x100000:0x110000]).hexdigest()[:8]
    assert read_lora(path)[1]["sshs_legacy_hash"] == legacy
    assert (legacy == hashlib.sha256(b"").hexdigest()[:8]) == (len(whole) <= 0x100000)


def test_tensors_hash_does_not_depend_on_metadata(tmp_path: Path) -> None:
    hashes = []
    for metadata in ({}, METADATA):
        save_lora(tmp_path / "a", some_tensors(), precision="fp16", metadata=metadata)
        hashes.append(read_lora(tmp_path / "a")[1]["sshs_model_hash"])
    assert hashes[0] == hashes[1]


def test_unusual_memory_layouts_are_saved_by_value(tmp_path: Path) -> None:
    shared = torch.arange(12.0)
    tensors = {
        "transposed": shared.view(3, 4).T,
        "slice": shared[::2],
        "whole": shared,
        "again": shared,
        "last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "trained": torch.nn.Parameter(torch.ones(2)),
    }
    save_lora(tmp_path / "a", tensors, precision="float", metadata={})
    found = read_lora(tmp_path / "a")[0]
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


names = st.text(min_size=1, max_size=20).filter(lambda name: name != "__metadata__")
texts = st.text(max_size=20)
shapes = st.lists(st.integers(0, 4), max_size=4)
values = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(data=st.data(), metadata=st.dictionaries(names, texts, max_size=4))
def test_save_and_load_are_inverse(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, metadata: dict[str, str]
) -> None:
    tensors = {}
    for name, shape in data.draw(st.dictionaries(names, shapes, min_size=1, max_size=4)).items():
        size = math.prod(shape)
        drawn = data.draw(st.lists(values, min_size=size, max_size=size))
        tensors[name] = torch.tensor(drawn, dtype=torch.float32).view(shape)
    path = tmp_path_factory.mktemp("property") / "a.safetensors"
    save_lora(path, tensors, precision="float", metadata=metadata)
    found, read = read_lora(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name].view(torch.int32), tensor.view(torch.int32))  # bitwise
    assert read.items() >= metadata.items()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, bad: float) -> None:
    path = tmp_path / "a.safetensors"
    save_lora(path, some_tensors(), precision="fp16", metadata={})
    before = path.read_bytes()
    tensors = some_tensors()
    tensors["lora_unet_b.lora_up.weight"][3, 2] = bad
    tensors["lora_unet_b.alpha"] = torch.tensor(7e4)
    with pytest.raises(DivergedError) as caught:
        save_lora(path, tensors, precision="fp16", metadata={})
    broken, overflown = caught.value.problems
    assert "1 of 4 tensors: lora_unet_b.lora_up.weight" in broken.found
    assert "too large for fp16 in 1 of 4 tensors: lora_unet_b.alpha" in overflown.found
    assert "save_precision=bf16" in overflown.fix
    assert path.read_bytes() == before  # what was there stays
    assert len(list(tmp_path.iterdir())) == 1


def test_what_overflows_fp16_fits_the_other_precisions(tmp_path: Path) -> None:
    for precision in ("float", "bf16"):
        tensors = {"a": torch.tensor([7e4])}
        save_lora(tmp_path / "a", tensors, precision=precision, metadata={})
        assert float(read_lora(tmp_path / "a")[0]["a"]) == pytest.approx(7e4, rel=2**-8)


def test_many_broken_tensors_are_counted_and_a_few_named(tmp_path: Path) -> None:
    tensors = {f"t{index}": torch.tensor(math.nan) for index in range(9)}
    with pytest.raises(DivergedError, match=r"9 of 9 tensors: t0, t1, t2, t3, t4 and 4 more"):
        save_lora(tmp_path / "a", tensors, precision="float", metadata={})


def test_failing_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    save_lora(path, some_tensors(), precision="fp16", metadata={})
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_lora(path, some_tensors(8), precision="fp16", metadata={})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("kept", [0, 4, 8, 60, 200, -1])
def test_truncated_file_is_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "a.safetensors"
    save_lora(path, some_tensors(), precision="fp16", metadata=METADATA)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DamagedFileError) as caught:
        read_lora(path)
    assert caught.value.problems[0].where == str(path)


def raw(header: bytes, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + body


@pytest.mark.parametrize(
    "content",
    [
        b"PK\x03\x04" + b"\0" * 100,
        b"\x80\x02}q\x00." * 20,
        raw(b"{}", b"trailing"),
        raw(b"not json"),
        raw(b'{"a":{"dtype":"Q7","shape":[1],"data_offsets":[0,1]}}', b"\0"),
        raw(b'{"a":{"dtype":"F8_E8M0","shape":[1],"data_offsets":[0,1]}}', b"\0"),
        raw(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', b"\0" * 4),
        struct.pack("<Q", 2**62) + b"{}",
    ],
    ids=["zip", "pickle", "trailing", "text", "dtype", "newer-dtype", "shape", "huge"],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match="whole safetensors file"):
        read_lora(path)


def test_absent_file_and_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.safetensors", tmp_path):
        with pytest.raises(DamagedFileError, match="whole safetensors file"):
            read_lora(path)


def test_file_with_nan_is_refused_by_name(tmp_path: Path) -> None:
    tensors = some_tensors()
    tensors["lora_te_a.lora_down.weight"][0, 0] = math.nan
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(DamagedFileError, match=r"1 of 4 tensors: lora_te_a\.lora_down\.weight"):
        read_lora(path)


def test_file_without_metadata_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file(some_tensors(), path)
    assert read_lora(path)[1] == {}


FLOATS = st.lists(st.floats(width=16, allow_nan=True, allow_infinity=True), min_size=1, max_size=40)
KINDS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}


@given(values=FLOATS, kind=st.sampled_from([*KINDS]))
def test_every_float_is_read_exactly_and_nan_found_where_torch_finds_it(
    tmp_path_factory: pytest.TempPathFactory, values: list[float], kind: torch.dtype
) -> None:
    tensor = torch.tensor(values, dtype=torch.float32).to(kind)
    path = tmp_path_factory.mktemp("property") / "a.safetensors"
    entries = {}
    # An odd number of bytes before it: a tensor need not lie where its numbers would be aligned.
    for name, dtype, shape, ends in (
        ("a", "I8", [3], [0, 3]),
        ("b", KINDS[kind], [len(values)], [3, 3 + tensor.nbytes]),
    ):
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": ends}
    body = bytes([1, 1, 1]) + tensor.view(torch.uint8).numpy().tobytes()
    path.write_bytes(raw(json.dumps(entries).encode(), body))
    file = SafetensorsFile(path)
    width = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[kind.itemsize]
    assert torch.equal(file.tensor("b").view(width), tensor.view(width))
    assert file.tensor("a").tolist() == [1, 1, 1]
    if not tensor.float().isfinite().all():
        with pytest.raises(DamagedFileError, match=r"NaN or infinity in 1 of 2 tensors: b"):
            file.check_finite()
        return
    file.check_finite()
    assert file.number("b") == float(tensor[0].double())
    assert file.number("a") == 1
