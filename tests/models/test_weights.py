"""Weight files that are damaged, hostile or another network's: each refused with its reason, nothing executed, memory flat."""

from __future__ import annotations

import json
import os
import pickle
import resource
import struct
import tracemalloc
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from frostline.errors import ModelError
from frostline.models.weights import SUFFIXES, check_safetensors, load_into, looks_like, read_keras_h5, read_weights


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.system, (f"touch '{self.target}'",)


def read(path: Path) -> object:
    return read_keras_h5(path) if path.suffix in (".h5", ".hdf5") else read_weights(path)


def peak_kilobytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"层.weight": torch.randn(3, 4), "bias": torch.randn(3).half(), "count": torch.tensor(7)}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
def test_what_was_written_is_read(tmp_path: Path, tensors: dict[str, torch.Tensor], suffix: str) -> None:
    path = tmp_path / f"权重{suffix}"
    (safetensors.torch.save_file if suffix == ".safetensors" else torch.save)(tensors, path)
    found = read_weights(path)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) and found[name].dtype == tensors[name].dtype for name in tensors)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrap", ["state_dict", "model"])
def test_checkpoints_are_unwrapped(tmp_path: Path, tensors: dict[str, torch.Tensor], wrap: str, zipped: bool) -> None:
    path = tmp_path / "a.pth"
    content = {wrap: {f"module.{name}": value for name, value in tensors.items()}, "epoch": 3, "optimizer": {"state": {}}}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert read_weights(path).keys() == tensors.keys()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("suffix", list(SUFFIXES))
def test_torch_bomb_under_every_extension(tmp_path: Path, suffix: str, zipped: bool) -> None:
    target, path = tmp_path / "executed", tmp_path / f"bomb{suffix}"
    torch.save({"a": torch.zeros(2), "b": Bomb(target)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelError, match=r"wants to run code .posix.system. and was refused|run code when it is read; refused"):
        read(path)
    assert not target.exists()


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("suffix", list(SUFFIXES))
def test_plain_pickle_under_every_extension(tmp_path: Path, suffix: str, protocol: int) -> None:
    target, path = tmp_path / "executed", tmp_path / f"bomb{suffix}"
    path.write_bytes(pickle.dumps(Bomb(target), protocol=protocol) + bytes(64))
    with pytest.raises(ModelError, match=r"refused|truncated|damaged"):
        read(path)
    assert not target.exists()


def test_pickled_module_is_refused_by_name(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "m.pth")
    with pytest.raises(ModelError, match=r"wants to run code \(torch.nn.modules.linear.Linear\).*save_file"):
        read_weights(tmp_path / "m.pth")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".h5"])
@pytest.mark.parametrize("content", [b"", b"hello, this is text and not a weight file", b"\x00" * 40])
def test_nonsense(tmp_path: Path, suffix: str, content: bytes) -> None:
    (tmp_path / f"n{suffix}").write_bytes(content)
    with pytest.raises(ModelError, match=r"truncated|damaged|header"):
        read(tmp_path / f"n{suffix}")


def test_content_and_extension_must_agree(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    safetensors.torch.save_file(tensors, tmp_path / "a.pth")
    with pytest.raises(ModelError, match=r"named '.pth', but its content is a safetensors file"):
        read_weights(tmp_path / "a.pth")
    with pytest.raises(ModelError, match=r"extension '.onnx' is not one of"):
        (tmp_path / "a.onnx").write_bytes(b"x")
        read_weights(tmp_path / "a.onnx")
    with pytest.raises(ModelError, match=r"no such file"):
        read_weights(tmp_path / "没有.pth")
    with pytest.raises(ModelError, match=r"a folder"):
        read_weights(tmp_path)


def safetensors_bytes(header: object, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


HEADERS = {
    "terabytes of header": (struct.pack("<Q", 2**42) + b'{"a":1}', "truncated: header says 4398046511112 bytes, file has 15"),
    "terabytes of tensor": (
        safetensors_bytes({"a": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}}, bytes(8)),
        "truncated: tensor 'a' ends at byte 1099511627776 of the data, the file has 8",
    ),
    "shape larger than its bytes": (
        safetensors_bytes({"a": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 8]}}, bytes(8)),
        "cannot take 8 bytes",
    ),
    "shape that overflows": (
        safetensors_bytes({"a": {"dtype": "F32", "shape": [2**62, 4, 2], "data_offsets": [0, 8]}}, bytes(8)),
        "cannot take 8 bytes",
    ),
    "negative offset": (safetensors_bytes({"a": {"dtype": "U8", "shape": [8], "data_offsets": [-8, 0]}}, bytes(8)), "expected dtype"),
    "unknown dtype": (safetensors_bytes({"a": {"dtype": "Q4", "shape": [8], "data_offsets": [0, 8]}}, bytes(8)), "has dtype 'Q4'"),
    "overlap": (
        safetensors_bytes({name: {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]} for name in "ab"}, bytes(8)),
        "damaged safetensors file",
    ),
    "hidden bytes": (safetensors_bytes({"a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}}, bytes(64)), "the header accounts for"),
    "nesting": (safetensors_bytes(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "not a JSON object"),
    "a list": (safetensors_bytes(b'{"a":[1,2]}'), "expected dtype, shape and data_offsets"),
}


@pytest.mark.parametrize("name", list(HEADERS))
def test_hostile_safetensors(tmp_path: Path, name: str) -> None:
    content, message = HEADERS[name]
    path, before = tmp_path / "h.safetensors", peak_kilobytes()
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        read_weights(path)
    assert peak_kilobytes() - before < 50_000


def test_truncated_files(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "t.safetensors"
    safetensors.torch.save_file(tensors, path)
    check_safetensors(path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ModelError, match=r"truncated: tensor .* ends at byte"):
        read_weights(path)
    for zipped in (True, False):
        torch.save(tensors, tmp_path / "t.pth", _use_new_zipfile_serialization=zipped)
        whole = (tmp_path / "t.pth").read_bytes()
        (tmp_path / "t.pth").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ModelError, match=r"truncated|damaged"):
            read_weights(tmp_path / "t.pth")


def test_zip_bomb(tmp_path: Path) -> None:
    path, before = tmp_path / "z.pth", peak_kilobytes()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("z/data/0", "w", force_zip64=True) as entry:
        for _ in range(64):
            entry.write(bytes(1 << 20))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(ModelError, match=r"would unpack to 67108864 bytes, file has \d+.*refused as a zip bomb"):
        read_weights(path)
    assert peak_kilobytes() - before < 50_000


def test_legacy_storage_that_claims_gigabytes(tmp_path: Path) -> None:
    path, before = tmp_path / "l.pth", peak_kilobytes()
    torch.save({"w": torch.zeros(100_003)}, path, _use_new_zipfile_serialization=False)
    number = b"J" + struct.pack("<i", 100_003)
    assert number in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(number, b"J" + struct.pack("<i", 2**31 - 1)))
    with pytest.raises(ModelError, match=r"damaged"):
        read_weights(path)
    assert peak_kilobytes() - before < 50_000


def test_no_tensors(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "n.pth")
    with pytest.raises(ModelError, match=r"holds no tensors under \['epoch'\]"):
        read_weights(tmp_path / "n.pth")
    torch.save([torch.zeros(1)], tmp_path / "n.pth")
    with pytest.raises(ModelError, match=r"holds a 'list', expected a dict of tensors"):
        read_weights(tmp_path / "n.pth")
    torch.save({"s": torch.eye(3).to_sparse()}, tmp_path / "n.pth")
    with pytest.raises(ModelError, match=r"tensor 's' is sparse"):
        read_weights(tmp_path / "n.pth")


def keras_file(path: Path) -> h5py.File:
    """One layer in the legacy layout; its dataset `kernel` is for the test to make."""
    file = h5py.File(path, "w")
    file.attrs["layer_names"] = [b"input", b"conv"]
    file.create_group("input").attrs["weight_names"] = []
    file.create_group("conv").attrs["weight_names"] = [b"conv/kernel:0"]
    file["conv"].create_group("conv")
    return file


@pytest.mark.parametrize("root", ["", "model_weights"])
def test_keras_layers_are_read_in_order(tmp_path: Path, root: str) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    with h5py.File(tmp_path / "k.h5", "w") as file:
        top = file.create_group(root) if root else file
        top.attrs["layer_names"] = ["z", "空", "a"]
        for layer in ("a", "z", "空"):
            top.create_group(layer).attrs["weight_names"] = [] if layer == "空" else [f"{layer}/kernel"]
            if layer != "空":
                top[layer][f"{layer}/kernel"] = values
    layers = read_keras_h5(tmp_path / "k.h5")
    assert [name for name, _ in layers] == ["z", "空", "a"]
    assert layers[1][1] == {}
    assert np.array_equal(layers[2][1]["a/kernel"], values)


def external_link(file: h5py.File, other: Path) -> None:
    file["conv/conv/kernel:0"] = h5py.ExternalLink(str(other), "/secret")


def external_group(file: h5py.File, other: Path) -> None:
    del file["conv"]
    file["conv"] = h5py.ExternalLink(str(other), "/")


def soft_link(file: h5py.File, other: Path) -> None:
    file["elsewhere"] = np.zeros(3, np.float32)
    file["conv/conv/kernel:0"] = h5py.SoftLink("/elsewhere")


def external_storage(file: h5py.File, other: Path) -> None:
    file.create_dataset("conv/conv/kernel:0", (4,), "f4", external=[(str(other), 0, 16)])


def virtual(file: h5py.File, other: Path) -> None:
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource(str(other), "secret", (3,), "f4")
    file.create_virtual_dataset("conv/conv/kernel:0", layout)


def terabytes(file: h5py.File, other: Path) -> None:
    file.create_dataset("conv/conv/kernel:0", (2**38,), "f4", chunks=(1024,))


def compressed(file: h5py.File, other: Path) -> None:
    file.create_dataset("conv/conv/kernel:0", (1 << 20,), "f4", data=np.zeros(1 << 20, np.float32), compression="gzip")


def parent_path(file: h5py.File, other: Path) -> None:
    file["conv"].attrs["weight_names"] = [b"../../secret"]


def objects(file: h5py.File, other: Path) -> None:
    file.create_dataset("conv/conv/kernel:0", (2,), h5py.string_dtype())


def loop(file: h5py.File, other: Path) -> None:
    file["conv/conv/kernel:0"] = file["conv"]


H5 = {
    external_link: "a link to another file",
    external_group: "a link to another file",
    soft_link: "a soft link",
    external_storage: "takes its data from another file",
    virtual: "takes its data from another file",
    terabytes: r"truncated: its datasets say 1099511627776 bytes",
    compressed: "compressed or filtered",
    parent_path: "not a name inside the file",
    objects: "expected floating-point numbers",
    loop: "is not a dataset",
}


@pytest.mark.parametrize("make", list(H5), ids=lambda make: make.__name__)
def test_hostile_h5(tmp_path: Path, make) -> None:  # type: ignore[no-untyped-def]
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["secret"] = np.ones(3, np.float32)
    with keras_file(tmp_path / "k.h5") as file:
        make(file, other)
    before = peak_kilobytes()
    with pytest.raises(ModelError, match=H5[make]):
        read_keras_h5(tmp_path / "k.h5")
    assert peak_kilobytes() - before < 50_000


def test_h5_without_the_layout_and_truncated(tmp_path: Path) -> None:
    path = tmp_path / "k.h5"
    with h5py.File(path, "w") as file:
        file["layers/conv/vars/0"] = np.zeros(3)
    with pytest.raises(ModelError, match=r"'/' has no attribute 'layer_names': not Keras's legacy layout"):
        read_keras_h5(path)
    with keras_file(path) as file:
        file["conv/conv/kernel:0"] = np.zeros(4096, np.float32)
    path.write_bytes(path.read_bytes()[:-8000])
    with pytest.raises(ModelError, match=r"damaged HDF5 file"):
        read_keras_h5(path)
    with pytest.raises(ModelError, match=r"only vgg16 and vgg19"):
        read_weights(path)


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def test_load_into_copies_and_renames() -> None:
    source, target = network(), network()
    with torch.no_grad():
        source[0].weight.add_(1)
    state = {f"body.{name}": value for name, value in source.state_dict().items() if not name.endswith("num_batches_tracked")}
    load_into(target, state | {"old_head.bias": torch.zeros(9)}, prefix_map={"body.": "", "old_head.": None})
    assert torch.equal(target[0].weight, source[0].weight)
    assert target[0].weight.data_ptr() != source[0].weight.data_ptr()


def test_load_into_is_strict_both_ways_and_copies_nothing() -> None:
    target = network()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    good = {name: value + 1 for name, value in network().state_dict().items()}
    wrong = good | {"2.weight": torch.zeros(5, 3), "extra": torch.zeros(1)}
    with pytest.raises(
        ModelError, match=r"w.pth: for another architecture: '2.weight' has shape \(5, 3\) in the file, \(2, 3\) in the model"
    ):
        load_into(target, wrong, source="w.pth")
    with pytest.raises(ModelError, match=r"1 tensors differ, 0 are missing, 1 unexpected"):
        load_into(target, wrong)
    with pytest.raises(ModelError, match=r"'2.weight' of shape \(2, 3\) is missing in the file .0 tensors differ, 2 are missing"):
        load_into(target, {name: value for name, value in good.items() if not name.startswith("2.")})
    with pytest.raises(ModelError, match=r"'extra' of shape \(1,\) in the file is unknown"):
        load_into(target, good | {"extra": torch.zeros(1)})
    with pytest.raises(ModelError, match=r"'0.bias' has shape .*torch.int64 in the file, torch.float32 in the model"):
        load_into(target, good | {"0.bias": torch.zeros(3, dtype=torch.int64)})
    with pytest.raises(ModelError, match=r"two tensors of the file are both '0.bias'"):
        load_into(target, good | {"x.bias": torch.zeros(3)}, prefix_map={"x.": "0."})
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


def test_looks_like() -> None:
    assert looks_like({f"_blocks.{i}._bn1.weight": torch.zeros(1) for i in range(16)}) == "efficientnet-lite0"
    assert looks_like({"encoder.weight": torch.zeros(1)}) is None


def test_a_view_that_repeats_its_values_is_refused(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"w": torch.zeros(1).expand(2**40)}, path)
    tracemalloc.start()
    with pytest.raises(ModelError, match=r"tensor 'w' of shape \(1099511627776,\) takes 4398046511104 bytes, 4 are stored: it repeats"):
        read_weights(path)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_many_names_for_one_storage_are_refused_and_tied_weights_are_not(tmp_path):
    stored = torch.zeros(300_000)
    torch.save({f"w{index}": stored.view(300, 1000) for index in range(10)}, tmp_path / "a.pth")
    with pytest.raises(ModelError, match=r"tensor 'w\d' .* makes it \d+ bytes, the file has \d+: it repeats its values; refused"):
        read_weights(tmp_path / "a.pth")
    torch.save({"embedding": stored, "head": stored, "part": stored[:10].t()}, tmp_path / "b.pth")
    assert set(read_weights(tmp_path / "b.pth")) == {"embedding", "head", "part"}
