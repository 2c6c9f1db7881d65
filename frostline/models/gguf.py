"""GGUF files: the single-file format of llama.cpp, read into ordinary float32 weights, a configuration and a tokenizer.

Layout: the magic ``GGUF``, version, count of tensors, count of metadata; the metadata (key, type, value; strings and arrays with
their lengths before them); per tensor its name, shape, type and offset; then, from a multiple of the alignment on, the blocks. A
quantised type packs blocks of 32 or 256 numbers with scales of their own (Q4_1: 32 numbers of 4 bits, a scale and a least value).

``transformers`` reads the format (with the package ``gguf``): architecture, names and blocks become its own classes. Before it
does, every length in the file is checked here against the file's size, since a header can claim anything (law 11); and the
network that the metadata describe is compared with the tensors that are there. What comes out remembers nothing of the packing:
it trains and is saved like the weights of any folder.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import math
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frostline.data.dataset import Schema
from frostline.errors import ModelError, require
from frostline.models import hf_module

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of the metadata types that have a fixed size; 8 is a string, 9 an array."""
_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS = 4
_SLACK = 30_000_000
_SLACK_LAYERS = 100


@dataclass(frozen=True, kw_only=True)
class GgufModel:
    """What a GGUF file holds, as an HF folder would hold it."""

    config: dict[str, Any]
    state: dict[str, Tensor]
    tokenizer: Any


def gguf_file(name: str) -> Path | None:
    """The GGUF file that ``name`` means: itself, or the only one of a folder that has no config.json; else None."""
    path = Path(name).expanduser()
    if path.suffix.lower() == ".gguf":
        return path
    if not path.is_dir() or (path / "config.json").is_file():
        return None
    found = sorted(path.glob("*.gguf"))
    if len(found) > 1:
        raise ModelError(f"model {name!r} holds {len(found)} GGUF files, expected one. Name it: model.name={found[0]}")
    return found[0] if found else None


def read_gguf(path: Path, schema: Schema) -> GgufModel:
    """Configuration, float32 weights and tokenizer. Raises ModelError for a file that is damaged, hostile or of an unknown architecture."""
    numbers, tensors = check_gguf(path)
    with _parsed_once(path):
        config, tokenizer = _header(path)
        _refuse_larger(path, config, schema, numbers, tensors)
        return GgufModel(config=config, state=_weights(path, config, schema), tokenizer=tokenizer)


@contextlib.contextmanager
def _parsed_once(path: Path) -> Iterator[None]:
    """Within, a file is parsed once: ``transformers`` does it for each thing that it asks, a vocabulary takes seconds each time."""
    gguf: Any = require("gguf", "gguf", f"reading {path.name!r}")
    reader = gguf.GGUFReader
    gguf.GGUFReader = functools.lru_cache(maxsize=1)(reader)
    try:
        yield
    finally:
        gguf.GGUFReader = reader


def _weights(path: Path, config: dict[str, Any], schema: Schema) -> dict[str, Tensor]:
    try:
        with hf_module.quiet(), contextlib.redirect_stderr(io.StringIO()):  # its bar of progress knows no setting
            cls = hf_module.task_class(hf_module.parse_config(config), schema)
            module = cls.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32, local_files_only=True)
    except ModelError:
        raise
    except Exception as error:  # whatever the file's values make the reader stumble over
        raise _unreadable(path, error) from error
    return module.state_dict()


def read_gguf_header(path: Path) -> tuple[dict[str, Any], Any]:
    """The configuration, as config.json would hold it, and the tokenizer. Raises ModelError like :func:`read_gguf`."""
    check_gguf(path)
    with _parsed_once(path):
        return _header(path)


def _header(path: Path) -> tuple[dict[str, Any], Any]:
    """The header of a file that was checked."""
    from transformers import AutoConfig, AutoTokenizer

    require("accelerate", "gguf", f"reading {path.name!r}")
    try:
        with hf_module.quiet():
            config = AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name, trust_remote_code=False, local_files_only=True)
            tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise _unreadable(path, error) from error
    tokenizer = _without_made_up_tokens(tokenizer, path)
    values = config.to_dict()
    for name in ("quantization_config", "_model_name_or_path", "_name_or_path", "transformers_version"):
        values.pop(name, None)
    return {**values, "dtype": "float32"}, tokenizer


def check_gguf(path: Path) -> tuple[int, int]:
    """Check every length and offset against the file's size; gives (numbers, tensors). Raises ModelError."""
    gguf = require("gguf", "gguf", f"reading {path.name!r}")
    if not path.is_file():
        raise ModelError(f"model.name got {str(path)!r}, which is no file, expected a GGUF file. Give its path")
    size = path.stat().st_size
    if size < 24:
        raise ModelError(f"{path}: has {size} bytes, expected a GGUF file. Copy or download it again")
    blocks = {int(kind): sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        cursor = _Cursor(path=path, content=content, size=size)
        if cursor.take(4) != _MAGIC:
            raise ModelError(
                f"{path}: begins with {content[:4]!r}, expected {_MAGIC!r}: not a GGUF file. Get the file from its source again"
            )
        version, tensors, entries = cursor.number("<I"), cursor.number("<Q"), cursor.number("<Q")
        if version not in _VERSIONS:
            raise ModelError(f"{path}: GGUF version {version!r}, expected 2 or 3, little-endian. Convert the model again with llama.cpp")
        alignment = 32
        for _ in range(cursor.count(entries, 13)):
            key, kind = cursor.text(), cursor.number("<I")
            start = cursor.at
            cursor.skip_value(kind)
            if key == b"general.alignment" and kind == 4:
                alignment = struct.unpack_from("<I", content, start)[0]
        if not 1 <= alignment <= 1 << 16 or alignment & (alignment - 1):
            raise ModelError(f"{path}: general.alignment {alignment!r}, expected a power of two. The file is damaged; get it again")
        infos = [cursor.tensor(blocks) for _ in range(cursor.count(tensors, 32))]
        begin = -(-cursor.at // alignment) * alignment
    return _check_data(path, infos, size - begin), len(infos)


@dataclass(kw_only=True)
class _Cursor:
    """A place in the file that never leaves it."""

    path: Path
    content: mmap.mmap
    size: int
    at: int = 0

    def take(self, length: int) -> bytes:
        start = self.at
        self.skip(length)
        return self.content[start : self.at]

    def skip(self, length: int) -> None:
        if length > self.size - self.at:
            raise ModelError(
                f"{self.path}: truncated: {length} bytes are to stand at byte {self.at}, file has {self.size}. Copy or download it again"
            )
        self.at += length

    def number(self, form: str) -> int:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def count(self, claimed: int, least: int) -> int:
        """How many items follow, if so many of at least so many bytes can."""
        if claimed * least > self.size - self.at:
            raise ModelError(f"{self.path}: truncated: {claimed} items are to follow byte {self.at}, file has {self.size}. Get it again")
        return claimed

    def text(self) -> bytes:
        return self.take(self.number("<Q"))

    def skip_value(self, kind: int) -> None:
        if kind in _WIDTHS:
            self.skip(_WIDTHS[kind])
        elif kind == _STRING:
            self.skip(self.number("<Q"))
        elif kind == _ARRAY:
            self.skip_array()
        else:
            raise ModelError(
                f"{self.path}: metadata of type {kind!r} at byte {self.at}, expected 0 to 12. The file is damaged; get it again"
            )

    def skip_array(self) -> None:
        kind, length = self.number("<I"), self.number("<Q")
        if kind in _WIDTHS:
            self.skip(length * _WIDTHS[kind])
        elif kind == _STRING:
            for _ in range(self.count(length, 8)):
                self.skip(self.number("<Q"))
        else:  # arrays of arrays are allowed by the format and used by no model
            raise ModelError(
                f"{self.path}: an array of type {kind!r} at byte {self.at}, expected numbers or strings; refused. Get it again"
            )

    def tensor(self, blocks: dict[int, tuple[int, int]]) -> tuple[bytes, int, int, int]:
        """(name, offset, bytes, numbers) of the next tensor."""
        name, dimensions = self.text(), self.number("<I")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise ModelError(
                f"{self.path}: tensor {name[:60]!r} has {dimensions!r} dimensions, expected 1 to {_MOST_DIMENSIONS}. Get it again"
            )
        shape = [self.number("<Q") for _ in range(dimensions)]
        kind, offset = self.number("<I"), self.number("<Q")
        if kind not in blocks:
            raise ModelError(
                f"{self.path}: tensor {name[:60]!r} has type {kind!r}, which is unknown. Get the model in another quantisation"
            )
        numbers, (block, block_bytes) = math.prod(shape), blocks[kind]
        if shape[0] % block:
            raise ModelError(f"{self.path}: tensor {name[:60]!r} of shape {shape!r} is not whole blocks of {block}. Get the file again")
        return name, offset, numbers // block * block_bytes, numbers


def _check_data(path: Path, infos: list[tuple[bytes, int, int, int]], room: int) -> int:
    """That the tensors lie in the file, beside each other; how many numbers they hold."""
    end = 0
    for name, offset, length, _ in sorted(infos, key=lambda info: info[1]):
        if offset < end:
            raise ModelError(f"{path}: tensor {name[:60]!r} lies upon another one; refused. Get the file from its source again")
        end = offset + length
        if end > room:
            raise ModelError(
                f"{path}: truncated: tensor {name[:60]!r} ends at byte {end} of the data, file has {max(0, room)}. Copy it again"
            )
    return sum(numbers for *_, numbers in infos)


def _without_made_up_tokens(tokenizer: Any, path: Path) -> Any:
    """The reader gives some tokenizers a token <|endoftext|> that the file does not have, nor the embedding a row for."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    content = json.loads(tokenizer.backend_tokenizer.to_str())
    held = len(content["model"].get("vocab", ()))
    kept = [token for token in content["added_tokens"] if token["id"] < held]
    if len(kept) == len(content["added_tokens"]):
        return tokenizer
    content["added_tokens"] = kept
    vocabulary = content["model"]["vocab"]  # a dict, or a list of (token, score)
    names = {token["content"] for token in kept} | {entry if isinstance(entry, str) else entry[0] for entry in vocabulary}
    special = {name: value for name, value in tokenizer.special_tokens_map.items() if value in names}
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)), **special, clean_up_tokenization_spaces=False, name_or_path=path.name
    )
    made.chat_template = tokenizer.chat_template
    return made


def _refuse_larger(path: Path, config: dict[str, Any], schema: Schema, numbers: int, tensors: int) -> None:
    """Metadata may describe any network; its size is found on the meta device, before memory is taken."""
    layers = hf_module.claimed_layers(config)
    if layers > tensors + _SLACK_LAYERS:
        raise ModelError(f"{path}: its metadata describe {layers!r} layers, it holds {tensors} tensors. Get the file again")
    try:
        with torch.device("meta"):
            skeleton = hf_module.build_transformers(schema=schema, config=config, head=(), pool=None, pooler=True)
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise _unreadable(path, error) from error
    claimed = sum(parameter.numel() for parameter in skeleton.parameters())
    if claimed > 2 * numbers + _SLACK:
        raise ModelError(f"{path}: its metadata describe {claimed!r} numbers, it holds {numbers!r}. Get the file from its source again")


def _unreadable(path: Path, error: Exception) -> ModelError:
    reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
    return ModelError(
        f"{path}: the GGUF file cannot be read by transformers: {reason}. Give the model as an HF folder (config.json, model.safetensors)"
    )
