"""Reading weight files without trusting them (law 11). The only place where a pickle or an HDF5 file is opened.

A weight file from elsewhere can attack in three ways, and each is met before its content is used:

- **Code.** A pickle is a program. ``torch.load(weights_only=True)`` runs only an allow-list of tensor constructors; what
  asks for more is refused. A pickle is only read where the name says so (.pth, .pt, .bin): the content's first bytes and
  the extension have to agree, so a pickle that calls itself .safetensors never reaches an unpickler.
- **Size.** Every length in a header is checked against the size of the file before memory is taken: safetensors headers,
  zip directories (PyTorch never compresses, so a compressed entry is not its work), HDF5 datasets. A PyTorch tensor is a view
  (shape and strides) of a storage: one that repeats its storage (stride 0) would be copied to any size, and is refused.
- **Places.** HDF5 can refer to other files (external links, external storage, virtual datasets, soft links); every
  object is reached by hard links only, and names inside a file never become paths.

``load_into`` then demands that names and shapes agree both ways, and says what the file looks like when they do not.
"""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import nn

from frostline.errors import ModelError, require

SUFFIXES = {
    ".safetensors": ("safetensors",),
    ".pth": ("zip", "pickle"),
    ".pt": ("zip", "pickle"),
    ".bin": ("zip", "pickle"),
    ".h5": ("hdf5",),
    ".hdf5": ("hdf5",),
}
"""What the content of a file with this extension may be."""
CONTENTS = {"safetensors": "a safetensors file", "zip": "a PyTorch (zip) file", "pickle": "a pickle", "hdf5": "an HDF5 file"}
ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
_VIEW_SLACK = 1 << 20
MOST_HEADER_BYTES = 100_000_000
"""The safetensors library's own limit."""


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors, .pth, .pt or .bin file, by name, on the CPU.

    A checkpoint that wraps its weights ({"state_dict": …}, {"model": …}) is unwrapped; what is not a tensor is left out.
    Raises ModelError where the file is damaged, not what its name says, or wants to run code.
    """
    path = Path(path)
    kind = _content(path)
    if kind == "hdf5":
        raise ModelError(f"{path}: an HDF5 file is read as Keras weights, which only vgg16 and vgg19 take, for example: model.name=vgg16")
    if kind == "safetensors":
        check_safetensors(path)
        return safetensors.torch.load_file(path, device="cpu")
    return _read_torch(path, zipped=kind == "zip")


def check_safetensors(path: Path) -> None:
    """Check header, types and every offset against the size of the file; reads the header only. Raises ModelError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ModelError(_truncated(path, f"header says {length + 8} bytes, file has {size}"))
        if length > MOST_HEADER_BYTES:
            raise ModelError(f"{path}: its header takes {length} bytes, expected at most {MOST_HEADER_BYTES}; refused")
        raw = file.read(length)
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise ModelError(f"{path}: the safetensors header is not a JSON object, the file is damaged; copy or download it again")
    ends = [_check_entry(path, name, entry, size - 8 - length) for name, entry in header.items() if name != "__metadata__"]
    if 8 + length + max(ends, default=0) != size:
        raise ModelError(f"{path}: the header accounts for {8 + length + max(ends, default=0)} bytes, file has {size}; the file is damaged")
    try:
        with safetensors.safe_open(path, framework="pt"):
            pass
    except safetensors.SafetensorError as error:
        raise ModelError(f"{path}: damaged safetensors file ({error}); copy or download it again") from error


def _check_entry(path: Path, name: str, entry: Any, available: int) -> int:
    """Where the tensor ends in the data section."""
    fields = entry if isinstance(entry, dict) else {}
    shape, offsets = _counts(fields.get("shape")), _counts(fields.get("data_offsets"))
    if shape is None or offsets is None or len(offsets) != 2:
        raise ModelError(f"{path}: tensor {name!r} is {str(entry)[:200]!r}, expected dtype, shape and data_offsets; the file is damaged")
    if entry.get("dtype") not in ITEM_BYTES:
        raise ModelError(f"{path}: tensor {name!r} has dtype {entry.get('dtype')!r}, expected one of {', '.join(ITEM_BYTES)}")
    begin, end = offsets
    if end > available:
        raise ModelError(_truncated(path, f"tensor {name!r} ends at byte {end} of the data, the file has {available}"))
    if end - begin != math.prod(shape) * ITEM_BYTES[entry["dtype"]]:
        raise ModelError(
            f"{path}: tensor {name!r} of shape {shape} and dtype {entry['dtype']!r} cannot take {end - begin} bytes; the file is damaged"
        )
    return end


def _counts(value: Any) -> list[int] | None:
    """``value`` if it is a short list of whole numbers from 0 on. (The product of a long one would take for ever.)"""
    fits = isinstance(value, list) and len(value) <= 64 and all(type(item) is int and 0 <= item < 2**63 for item in value)
    return value if fits else None


def _truncated(path: Path, what: str) -> str:
    return f"{path}: truncated: {what}. Copy or download it again"


def _content(path: Path) -> str:
    """What the file is, by its first bytes; raises ModelError unless its extension says the same."""
    if not path.is_file():
        raise ModelError(f"model.weights is {str(path)!r}: {'a folder' if path.is_dir() else 'no such file'}, expected a weight file")
    allowed = SUFFIXES.get(path.suffix.lower())
    if allowed is None:
        raise ModelError(
            f"{path}: extension {path.suffix!r} is not one of {', '.join(SUFFIXES)}; write the weights as .safetensors (Keras: as .h5)"
        )
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}. Give the file's path, as in model.weights=FILE") from error
    kind = _magic(start)
    if kind is None:
        # Too short or unknown: the reader of that format gives the better message. A pickle of protocol 0 has no magic
        # and goes to torch's restricted unpickler under .pth only.
        kind = "pickle" if "pickle" in allowed else allowed[0]
    if kind not in allowed:
        danger = ", which can run code when it is read" if kind in ("pickle", "zip") else ""
        raise ModelError(
            f"{path}: named {path.suffix!r}, but its content is {CONTENTS[kind]}{danger}; refused. Get the file from its source again"
        )
    return kind


def _magic(start: bytes) -> str | None:
    if start.startswith(b"PK\x03\x04"):
        return "zip"
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        return "hdf5"
    if start[8:9] == b"{":
        return "safetensors"
    if start[:1] == b"\x80" and len(start) > 1 and 2 <= start[1] <= 5:
        return "pickle"
    return None


def _read_torch(path: Path, zipped: bool) -> dict[str, torch.Tensor]:
    if zipped:
        _check_zip(path)
    try:
        content = torch.load(path, weights_only=True, map_location="cpu", mmap=zipped)
    except Exception as error:  # torch raises UnpicklingError, RuntimeError, EOFError, KeyError, … according to the damage
        raise ModelError(_torch_refused(path, str(error))) from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        raise ModelError(f"{path}: holds a {kind!r}, expected a dict of tensors; write one with torch.save(model.state_dict(), FILE)")
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, torch.Tensor)}
    odd = next((name for name, value in tensors.items() if value.layout != torch.strided or value.is_quantized or value.is_meta), None)
    if odd is not None:
        raise ModelError(f"{path}: tensor {odd!r} is sparse, quantised or empty of data, expected plain tensors")
    _check_views(path, tensors)
    if not tensors:
        raise ModelError(f"{path}: holds no tensors under {[str(name)[:40] for name in list(content)[:5]]!r}, expected a dict of tensors")
    if all(name.startswith("module.") for name in tensors):  # written by nn.DataParallel
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def _check_views(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """That the tensors are no larger than what the file stores, one by one and (tied weights count twice) together."""
    total, size = 0, path.stat().st_size
    for name, value in tensors.items():
        claimed, stored = value.numel() * value.element_size(), value.untyped_storage().nbytes()
        total += claimed
        if claimed > stored or total > 2 * size + _VIEW_SLACK:
            what = f"takes {claimed} bytes, {stored} are stored" if claimed > stored else f"makes it {total} bytes, the file has {size}"
            raise ModelError(
                f"{path}: tensor {name!r} of shape {tuple(value.shape)} {what}: it repeats its values; refused. "
                "Write plain tensors: torch.save({name: value.clone() for name, value in model.state_dict().items()}, FILE)"
            )


def _check_zip(path: Path) -> None:
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ModelError(_truncated(path, f"the zip directory cannot be read ({error})")) from error
    packed = next((entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED), None)
    claimed = sum(entry.file_size for entry in entries)
    if packed is not None or claimed > size:
        why = "its entries overlap" if packed is None else f"entry {packed.filename[:60]!r} is compressed, which PyTorch never writes"
        raise ModelError(
            f"{path}: would unpack to {claimed} bytes, file has {size}: {why}; refused as a zip bomb. Write it again with torch.save"
        )


def _torch_refused(path: Path, message: str) -> str:
    asked = re.search(r"(?:GLOBAL|class|global:?) ((?:\w+\.)+\w+)", message)
    if asked:
        return (
            f"{path}: the file wants to run code ({asked[1]}) and was refused; nothing of it was executed. "
            "If it is your own, write plain tensors: safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
        )
    # torch's own advice here is to switch its guard off.
    reason = "" if not message or "eights only" in message else f" ({message.splitlines()[0][:160]})"
    return f"{path}: damaged, or not plain PyTorch tensors, and refused; nothing of it was executed{reason}. Copy or download it again"


def read_keras_h5(path: str | Path) -> list[tuple[str, dict[str, np.ndarray]]]:
    """Layers of a Keras file in the legacy layout, in the file's order: (layer's name, {weight's name: array}).

    The root, or its group ``model_weights``, names its layers in the attribute ``layer_names``; each layer's group names its
    datasets in ``weight_names``. Raises ModelError where something lies outside the file or is larger than it.
    """
    path = Path(path)
    if _content(path) != "hdf5":
        raise ModelError(f"{path}: expected a Keras weight file with the extension .h5")
    h5py = require("h5py", "h5", f"reading the Keras weights {str(path)!r}")
    size = path.stat().st_size
    try:
        with h5py.File(path, "r") as file:
            root = _child(h5py, path, file, "model_weights") if "model_weights" in list(file) else file
            layers, total = [], 0
            for layer in _names(h5py, path, root, "layer_names"):
                group = _child(h5py, path, root, layer)
                weights = {name: _child(h5py, path, group, name) for name in _names(h5py, path, group, "weight_names")}
                total += sum(_stored_bytes(h5py, path, dataset) for dataset in weights.values())
                if total > size:
                    raise ModelError(_truncated(path, f"its datasets say {total} bytes up to layer {layer!r}, file has {size}"))
                layers.append((layer, {name: dataset[()] for name, dataset in weights.items()}))
            return layers
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise ModelError(f"{path}: damaged HDF5 file ({str(error)[:200]}); copy or download it again") from error


def _names(h5py: Any, path: Path, group: Any, attribute: str) -> list[str]:
    """A list of names from an attribute, whose own size is checked first."""
    if not isinstance(group, h5py.Group) or attribute not in group.attrs:
        raise ModelError(
            f"{path}: {getattr(group, 'name', '?')!r} has no attribute {attribute!r}: not Keras's legacy layout, the only one read; "
            "in Keras, write it with: keras.src.legacy.saving.legacy_h5_format.save_weights_to_hdf5_group(h5py.File(FILE, 'w'), model)"
        )
    stored = group.attrs.get_id(attribute)
    if math.prod(stored.shape) == 0:  # how Keras writes a layer without weights
        return []
    if not h5py.check_string_dtype(stored.dtype) or math.prod(stored.shape) * stored.dtype.itemsize > path.stat().st_size:
        raise ModelError(f"{path}: attribute {attribute!r} of {group.name!r} is not a list of names that fits the file; refused")
    values = np.atleast_1d(group.attrs[attribute]).ravel().tolist()
    return [value.decode("utf-8") if isinstance(value, bytes) else str(value) for value in values]


def _child(h5py: Any, path: Path, group: Any, name: str) -> Any:
    """The object called ``name`` below ``group``, every step of the way by a hard link."""
    for part in name.split("/"):
        if not isinstance(group, h5py.Group) or part in ("", ".", ".."):
            raise ModelError(f"{path}: {name!r} is not a name inside the file; refused")
        # By the link's own record: asking `part in group` or `group.get(part)` would already follow it.
        kind = group.id.links.get_info(part.encode()).type if part in list(group) else None
        if kind != h5py.h5l.TYPE_HARD:
            links = {None: "missing", h5py.h5l.TYPE_EXTERNAL: "a link to another file", h5py.h5l.TYPE_SOFT: "a soft link"}
            what = links.get(kind, "a link of unknown kind")
            raise ModelError(f"{path}: {name!r} is {what}, expected data in the file itself; refused")
        group = group[part]
    return group


def _stored_bytes(h5py: Any, path: Path, dataset: Any) -> int:
    """Bytes of a dataset that lies whole and plain in the file; anything else is refused."""
    if not isinstance(dataset, h5py.Dataset):
        raise ModelError(f"{path}: {getattr(dataset, 'name', '?')!r} is not a dataset; refused")
    if dataset.is_virtual or dataset.external:
        raise ModelError(f"{path}: dataset {dataset.name!r} takes its data from another file; refused")
    if dataset.dtype.kind != "f" or dataset.shape is None:
        raise ModelError(f"{path}: dataset {dataset.name!r} has dtype {str(dataset.dtype)!r}, expected floating-point numbers")
    if dataset.id.get_create_plist().get_nfilters():
        raise ModelError(f"{path}: dataset {dataset.name!r} is compressed or filtered, which Keras never writes; refused")
    return math.prod(dataset.shape) * dataset.dtype.itemsize


def load_into(
    module: nn.Module,
    state: Mapping[str, torch.Tensor],
    *,
    prefix_map: Mapping[str, str | None] | None = None,
    allow_missing: Sequence[str] = (),
    source: str = "weights",
) -> None:
    """Copy ``state`` into ``module``; names and shapes must agree both ways.

    ``prefix_map`` renames by the beginning of a name (None: left out); ``allow_missing``: beginnings of names that the file
    need not have (a new head); ``source``: the file, for errors. Raises ModelError naming the first mismatch and what the file
    looks like, and then copies nothing.
    """
    own = module.state_dict()
    given = _renamed(state, prefix_map or {})
    # Nothing reads the count of batches, and files made from other frameworks have none.
    needed = [name for name in own if not name.endswith("num_batches_tracked") and not name.startswith(tuple(allow_missing))]
    wrong = [name for name in own if name in given and _unlike(own[name], given[name])]
    missing = [name for name in needed if name not in given]
    unexpected = [name for name in given if name not in own]
    if wrong:
        mine, theirs = own[wrong[0]], given[wrong[0]]
        kinds = "" if mine.shape != theirs.shape else f" ({theirs.dtype} in the file, {mine.dtype} in the model)"
        first = f"{wrong[0]!r} has shape {tuple(theirs.shape)} in the file, {tuple(mine.shape)} in the model{kinds}"
    elif missing:
        first = f"{missing[0]!r} of shape {tuple(own[missing[0]].shape)} is missing in the file"
    elif unexpected:
        first = f"{unexpected[0]!r} of shape {tuple(given[unexpected[0]].shape)} in the file is unknown to the model"
    else:
        module.load_state_dict(given, strict=False)
        return
    counts = f"{len(wrong)} tensors differ, {len(missing)} are missing, {len(unexpected)} unexpected"
    looks = looks_like(given)
    hint = f"The file looks like {looks}: try model.name={looks}" if looks else "Name the model that the file was made for: model.name=NAME"
    raise ModelError(f"{source}: for another architecture: {first} ({counts}). {hint}")


def _renamed(state: Mapping[str, torch.Tensor], prefix_map: Mapping[str, str | None]) -> dict[str, torch.Tensor]:
    given: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        prefix = max((known for known in prefix_map if name.startswith(known)), key=len, default="")
        target = prefix_map[prefix] if prefix else ""
        if target is None:
            continue
        renamed = target + name[len(prefix) :]
        if renamed in given:
            raise ModelError(f"weights: two tensors of the file are both {renamed!r} here, the second is {name!r}; expected one")
        given[renamed] = value
    return given


def _unlike(own: torch.Tensor, given: torch.Tensor) -> bool:
    return own.shape != given.shape or own.is_floating_point() != given.is_floating_point() or given.is_complex()


def looks_like(state: Mapping[str, torch.Tensor]) -> str | None:
    """The architecture that names and the number of layers tell, or None.

    >>> looks_like({f"features.{i}.weight": torch.zeros(1, 1, 3, 3) for i in range(16)})
    'vgg19'
    """
    convolutions = sum(1 for name, value in state.items() if re.fullmatch(r"features\.\d+\.weight", name) and value.ndim == 4)
    if convolutions in (8, 10, 13, 16):
        norms = "_bn" if any(name.startswith("features.") and name.endswith("running_mean") for name in state) else ""
        return f"vgg{convolutions + 3}{norms}"
    blocks = {match[1] for name in state if (match := re.match(r"_blocks\.(\d+)\.", name))}
    if len(blocks) == 16:
        return "efficientnet-lite0"
    return None
