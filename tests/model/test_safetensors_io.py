"""Headers are checked before they are believed; files of the safetensors library and ours are the same."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from shoal.errors import ShoalError
from shoal.model.checkpoint.safetensors_io import (
    DTYPES,
    INDEX,
    Entry,
    read_folder,
    read_header,
    weight_files,
    write_file,
    write_folder,
)


def file_of(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def tensor(
    begin: int = 0, end: int = 8, shape: list[Any] | None = None, dtype: str = "F32"
) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [2] if shape is None else shape, "data_offsets": [begin, end]}


def entry(name: str, array: np.ndarray[Any, Any], dtype: str = "F32") -> Entry:
    return Entry(name, dtype, array.shape, lambda: array)


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array([1, -2], np.float16),
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.array(7, np.int64),
    }
    safetensors.numpy.save_file(arrays, tmp_path / "x.safetensors", {"note": "hi"})
    tensors, metadata = read_header(tmp_path / "x.safetensors")
    assert metadata["note"] == "hi"
    assert tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        assert np.array_equal(tensors[name].read(), array) and tensors[name].read().dtype == array.dtype


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    arrays = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.array([1, 2, 3], np.uint8)}
    with open(tmp_path / "x.safetensors", "wb") as file:
        write_file(file, [entry("a", arrays["a"], "U8"), entry("b", arrays["b"])])
    back = safetensors.numpy.load_file(tmp_path / "x.safetensors")
    assert back.keys() == arrays.keys() and all(np.array_equal(back[n], arrays[n]) for n in arrays)


def test_shards_have_an_index_and_read_back(tmp_path: Path) -> None:
    arrays = {f"t{n}": np.full((4, 8), n, np.float32) for n in range(5)}
    seen: list[tuple[int, int]] = []
    write_folder(
        tmp_path,
        [entry(name, array) for name, array in arrays.items()],
        max_shard_bytes=300,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert [path.name for path in weight_files(tmp_path)] == [
        f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)
    ]
    tensors = read_folder(tmp_path)
    assert all(np.array_equal(tensors[name].read(), array) for name, array in arrays.items())
    assert json.loads((tmp_path / INDEX).read_text())["metadata"]["total_size"] == 640
    assert seen[-1] == (640, 640) and len(seen) == 5


@pytest.mark.parametrize(
    ("header", "data", "says"),
    [
        ({"a": tensor(0, 8)}, b"1234", "claims bytes up to"),
        ({"a": tensor(0, 8), "b": tensor(4, 12)}, b"x" * 12, "overlap"),
        ({"a": tensor(4, 12)}, b"x" * 12, "belong to no tensor"),
        ({"a": tensor(0, 8)}, b"x" * 12, "its tensors end at"),
        ({"a": tensor(0, 8, [3])}, b"x" * 8, "needs 12 bytes"),
        ({"a": tensor(0, 8, [1 << 62, 1 << 62])}, b"x" * 8, "needs"),
        ({"a": tensor(0, 8, [-2])}, b"x" * 8, "has the shape"),
        ({"a": tensor(0, 8, [True, 2])}, b"x" * 8, "has the shape"),
        ({"a": tensor(8, 0)}, b"x" * 8, "its offsets give"),
        ({"a": tensor(-8, 0)}, b"x" * 8, "has the offsets"),
        ({"a": tensor(0, 8, dtype="F99")}, b"x" * 8, "dtype 'F99'"),
        ({"a": 5}, b"", "dtype None"),
        ([1, 2], b"", "not valid JSON"),
        (b"{", b"", "not valid JSON"),
        (b"\xff\xfe{}", b"", "not valid JSON"),
        (b"[" * 100_000, b"", "not valid JSON"),
        (b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{}}', b"", "twice"),
    ],
)
def test_a_bad_header_is_refused_by_name(tmp_path: Path, header: Any, data: bytes, says: str) -> None:
    path = file_of(tmp_path / "bad.safetensors", header, data)
    with pytest.raises(ShoalError, match=says) as caught:
        read_header(path)
    assert "bad.safetensors" in str(caught.value)


@pytest.mark.parametrize("length", [2**40, 2**64 - 1, 3, 100])
def test_a_header_longer_than_the_file_names_both_sizes(tmp_path: Path, length: int) -> None:
    path = file_of(tmp_path / "bad.safetensors", b"{}", length=length)
    with pytest.raises(ShoalError, match=r"has 10 bytes, its header claims [\d,]+ bytes") as caught:
        read_header(path)
    assert f"{length + 8:,}" in str(caught.value)
    assert "incomplete or damaged: fetch it again" in str(caught.value)


def test_a_header_over_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "big.safetensors"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", 100_000_001))
        file.truncate(200_000_000)  # sparse
    with pytest.raises(ShoalError, match="100,000,001 bytes, more than the 100,000,000 allowed"):
        read_header(path)


@pytest.mark.parametrize("size", [0, 1, 7])
def test_a_stub_is_refused(tmp_path: Path, size: int) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"\0" * size)
    with pytest.raises(ShoalError, match=f"has {size} bytes, not even a header fits"):
        read_header(tmp_path / "x.safetensors")


def test_every_cut_of_a_good_file_is_refused(tmp_path: Path) -> None:
    safetensors.numpy.save_file({"a": np.ones(20, np.float32)}, tmp_path / "x.safetensors")
    whole = (tmp_path / "x.safetensors").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "x.safetensors").write_bytes(whole[:length])
        with pytest.raises(ShoalError):
            read_header(tmp_path / "x.safetensors")


def test_a_header_of_640_bytes_is_no_pickle(tmp_path: Path) -> None:
    """Its first two bytes are 80 02, those of a pickle of protocol 2."""
    header = json.dumps({"a": tensor(0, 8)}).encode().ljust(0x280)
    tensors, _ = read_header(file_of(tmp_path / "x.safetensors", header, b"x" * 8))
    assert tensors["a"].nbytes == 8


def test_an_index_may_not_leave_its_folder_or_name_a_lost_shard(tmp_path: Path) -> None:
    outside = tmp_path / "outside.safetensors"
    safetensors.numpy.save_file({"a": np.ones(2, np.float32)}, outside)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "../outside.safetensors"}}))
    with pytest.raises(ShoalError, match="outside its folder"):
        read_folder(folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "model-00002-of-00002.safetensors"}}))
    with pytest.raises(ShoalError, match=r"model-00002-of-00002\.safetensors, which is not there"):
        read_folder(folder)
    for nonsense in ("[]", "{", '{"weight_map": {}}', '{"weight_map": 3}'):
        (folder / INDEX).write_text(nonsense)
        with pytest.raises(ShoalError, match="not a valid index"):
            read_folder(folder)


def test_an_index_that_promises_more_than_the_shards_hold(tmp_path: Path) -> None:
    write_folder(tmp_path, [entry(n, np.ones(8, np.float32)) for n in "abc"], max_shard_bytes=40)
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"]["lost"] = index["weight_map"]["a"]
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(ShoalError, match=r"lost \(model-00001"):
        read_folder(tmp_path)


def test_the_same_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("one.safetensors", "two.safetensors"):
        safetensors.numpy.save_file({"a": np.ones(2, np.float32)}, tmp_path / name)
    with pytest.raises(ShoalError, match=r"tensor a stands in one\.safetensors and in two\.safetensors"):
        read_folder(tmp_path)


def test_reading_maps_and_does_not_touch_the_file(tmp_path: Path) -> None:
    safetensors.numpy.save_file({"a": np.zeros(4, np.float32)}, tmp_path / "x.safetensors")
    before = (tmp_path / "x.safetensors").read_bytes()
    array = read_header(tmp_path / "x.safetensors")[0]["a"].read()
    assert isinstance(array, np.memmap)
    array[:] = 5
    assert (tmp_path / "x.safetensors").read_bytes() == before


def test_dtype_sizes_are_those_of_the_format() -> None:
    bits = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "BOOL": 8}
    assert {name: DTYPES[name].itemsize * 8 for name in bits} == bits
