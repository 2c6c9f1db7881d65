"""Models from a Hugging Face folder or hub id, through ``transformers``, without ever running code that lies beside them.

``config.json`` names an architecture (``model_type``), which must be one that ``transformers`` itself brings; an ``auto_map``
(code of the folder's own) is refused, or left aside where the architecture is built in. Weights go through
:func:`frostline.models.weights.read_weights` and come out as float32. A hub id is first copied to the local cache, its JSON,
tokenizer and weight files only, so that both ways are one. A GGUF file is a third (gguf.py).

Without ``head`` and ``pool`` the result is the architecture's own class for the task, and its saved folder loads in
``transformers``. With either it is a :class:`frostline.models.hf_module.BodyWithHead`: ``body``, ``pool`` and ``head``; so is an
embedding model, whose head is nothing. Only a head is ever new: a language model comes whole, with its output layer, or not at all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from frostline.data.dataset import Schema
from frostline.data.preprocess import ImagePreprocess, TextPreprocess
from frostline.errors import ModelError
from frostline.models import hf_module
from frostline.models.build import options_of
from frostline.models.card import card_from_dict, load_tokenizer, read_json
from frostline.models.gguf import gguf_file, read_gguf, read_gguf_header
from frostline.models.image_processor import read_image_preprocess
from frostline.models.language import blocks_of, pool_of, text_preprocess
from frostline.models.model import Card, Model
from frostline.models.output import body_and_output, check_causal, writes_from_source
from frostline.models.weights import read_weights

_OTHER_FILES = (
    "preprocessor_config.json",
    "generation_config.json",
    "chat_template.jinja",
    "1_Pooling/config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
_PROBLEMS = {"class": "single_label_classification", "multi-label": "multi_label_classification", "number": "regression"}
_MOST_LAYERS = 1000  # where the weights, which tell better, are not read
_SLACK_LAYERS = 100  # some architectures (ALBERT) use one layer's weights many times
_SLACK = 30_000_000  # numbers that a configuration may describe beyond its files: a pooler, say


@dataclass(frozen=True, kw_only=True)
class HeadOptions:
    """What is asked of a model beyond its folder; each may be left out."""

    head: tuple[str, ...] = ()
    pool: str | None = None
    size: int | None = None
    max_length: int | None = None


@dataclass(frozen=True, kw_only=True)
class _Files:
    """What stands in a folder or a GGUF file."""

    place: Path
    config: dict[str, Any]
    state: dict[str, Tensor]
    tokenizer: Any = None
    """Of a GGUF file; a folder's is read when it is needed."""


def from_folder_or_hub(name: str, schema: Schema, options: HeadOptions | None = None) -> Model:
    """A pretrained body with a head for ``schema``. New weights come from torch's global generator, which the caller seeds."""
    options = options or HeadOptions()
    files = _read(name, schema)
    folder, original, state = files.place, files.config, files.state
    arguments = _arguments(original, schema, folder, options)
    if not _same_labels(original, schema):
        state = _without_head(state, arguments["config"], schema)
    skeleton = _skeleton(arguments, schema, folder, state)
    _refuse_wrong_weights(skeleton, state, folder)
    module, head = (_with_new_head if options.head or arguments["pool"] else _with_own_head)(arguments, schema, state, folder)
    preprocess = _preprocess(files, skeleton, schema, options)
    if isinstance(preprocess, ImagePreprocess) and options.size is not None:
        _try_size(module, options.size, original, folder)
    source = f"{name} (the code beside it was not used)" if "auto_map" in original else name
    card = Card(name="transformers", arguments=arguments, schema=schema, preprocess=preprocess, pretrained=True, source=source)
    model = Model(module=module, card=card, blocks=blocks_of(module), head=head)
    if isinstance(preprocess, TextPreprocess):
        _finish_text(model, preprocess, folder)
    return model


def _read(name: str, schema: Schema, *, weights: bool = True) -> _Files:
    """Raises ModelError where there is nothing to read, or it cannot be trusted."""
    if (file := gguf_file(name)) is not None:
        if not weights:
            config, tokenizer = read_gguf_header(file)
            return _Files(place=file, config=config, state={}, tokenizer=tokenizer)
        read = read_gguf(file, schema)
        return _Files(place=file, config=read.config, state=read.state, tokenizer=read.tokenizer)
    folder = local_folder(name, weights=weights)
    return _Files(place=folder, config=read_json(folder / "config.json"), state=read_state(folder) if weights else {})


def _finish_text(model: Model, preprocess: TextPreprocess, folder: Path) -> None:
    """What is seen only when the weights are there."""
    module: Any = model.module
    schema, config = model.card.schema, model.card.arguments["config"]
    hf_module.read_generation(module, folder)
    without = schema.task == "text-classification" and getattr(module, "config", None) is not None and module.config.pad_token_id is None
    if schema.task == "reward" or without:  # the class may read the last token that is not padding, so it must know which is
        config["pad_token_id"] = module.config.pad_token_id = preprocess.tokenizer.pad_token_id
    if hf_module.writes(schema):
        model.body, model.output = body_and_output(module)
        if not writes_from_source(module):
            check_causal(module, str(folder))


def preprocess_of_folder(name: str, schema: Schema, options: HeadOptions | None = None) -> ImagePreprocess | TextPreprocess:
    """The preprocessing of :func:`from_folder_or_hub`, from the configuration, processor and tokenizer files alone."""
    options = options or HeadOptions()
    files = _read(name, schema, weights=False)
    arguments = _arguments(files.config, schema, files.place, options)
    hf_module.task_class(hf_module.parse_config(arguments["config"]), schema)
    return _preprocess(files, _skeleton(arguments, schema, files.place), schema, options)


def local_folder(name: str, *, weights: bool = True) -> Path:
    """The folder itself, or the local copy of a hub id. Raises ModelError saying what to do where neither is to be had."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"model {name!r} is a folder without config.json, expected an HF folder with config.json and model.safetensors"
            )
        return folder
    if folder.exists() or not _HUB_ID.fullmatch(name):
        raise ModelError(f"model {name!r} is neither a folder nor a hub id such as 'google/vit-base-patch16-224'. Give model.name=FOLDER")
    try:
        return _from_hub(name, weights)
    except Exception as error:  # the hub's client lets errors of several network libraries through
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"model {name!r} is no local folder and could not be fetched from the hub ({type(error).__name__}: {reason}). "
            "Copy its config.json, weights and tokenizer or preprocessor files into a folder and give that: model.name=FOLDER"
        ) from error


def _from_hub(name: str, weights: bool) -> Path:
    """Fetch the files that are read here, and no others, into the cache of ``transformers``; without ``weights`` the small ones only."""
    from transformers.utils import cached_file

    with hf_module.quiet():
        folder = Path(str(cached_file(name, "config.json"))).parent
        for file in _OTHER_FILES:
            _fetch_if_there(name, file)
        if not weights:
            return folder
        for file in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"):
            if _fetch_if_there(name, file):
                break
        for shard in _weight_files(folder):
            cached_file(name, shard.name)
    return folder


def _fetch_if_there(name: str, file: str) -> bool:
    from transformers.utils import cached_file

    try:
        return cached_file(name, file) is not None
    except OSError:
        return False


def read_state(folder: Path) -> dict[str, Tensor]:
    """The weights of an HF folder, all shards together; floating-point ones as float32, all in memory of their own."""
    state: dict[str, Tensor] = {}
    for file in _weight_files(folder):
        for name, tensor in read_weights(file).items():
            state[name] = tensor.to(torch.float32, copy=True) if tensor.is_floating_point() else tensor.clone()
    return state


def _weight_files(folder: Path) -> list[Path]:
    for single, index in (("model.safetensors", "model.safetensors.index.json"), ("pytorch_model.bin", "pytorch_model.bin.index.json")):
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            shards = read_json(folder / index).get("weight_map")
            names = sorted({str(name) for name in shards.values()}) if isinstance(shards, dict) else []
            if not names or any(name != Path(name).name or name in (".", "..") for name in names):
                raise ModelError(
                    f"{str(folder / index)!r}: weight_map names the files {names[:3]!r}, expected plain names of files beside it"
                )
            return [folder / name for name in names]
    found = sorted(path.name for path in folder.iterdir())[:12]
    raise ModelError(f"model {str(folder)!r} holds no weights (found {found!r}), expected model.safetensors or pytorch_model.bin")


def _arguments(original: dict[str, Any], schema: Schema, folder: Path, options: HeadOptions) -> dict[str, Any]:
    """What the card will hold for :func:`frostline.models.hf_module.build_transformers`."""
    for what, value in (("head", list(options.head)), ("pool", options.pool)):
        if value and what not in options_of("transformers", schema):
            raise ModelError(f"model.{what} got {value!r}, which a model for {schema.task!r} has no place for. Remove model.{what}")
    pool = options.pool or (pool_of(folder) if schema.task == "embedding" else None)
    return {"config": _config_for(original, schema, folder), "head": list(options.head), "pool": pool, "pooler": True}


def _config_for(original: dict[str, Any], schema: Schema, folder: Path) -> dict[str, Any]:
    """The values of config.json with the labels and the kind of target of ``schema``."""
    from transformers import CONFIG_MAPPING

    kind, code = original.get("model_type"), original.get("auto_map")
    if kind not in CONFIG_MAPPING:
        why = f" The folder brings code of its own (auto_map {code!r}), which is never run." if code else ""
        raise ModelError(
            f"{str(folder / 'config.json')!r}: model_type {kind!r} is not built into transformers.{why} Choose a "
            "model whose type is built in"
        )
    if packed := original.get("quantization_config"):
        raise ModelError(
            f"{str(folder / 'config.json')!r}: quantization_config {str(packed)[:80]!r}: its weights are packed and cannot learn. "
            "Give the model's unpacked weights, or a GGUF file"
        )
    dropped = ("auto_map", "frostline", "torch_dtype", "num_labels", "_name_or_path", "transformers_version", "_attn_implementation")
    values = {name: value for name, value in original.items() if name not in dropped}
    if hf_module.writes(schema) or schema.task == "embedding":
        return {**values, "dtype": "float32"}
    labels = schema.labels or ("LABEL_0",)
    return values | {
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
        "problem_type": "regression" if schema.task == "reward" else _PROBLEMS.get(schema.target),
        "dtype": "float32",
    }


def _same_labels(original: dict[str, Any], schema: Schema) -> bool:
    """Whether the checkpoint's own classifier already means what ``schema`` asks for, so that it may stay."""
    if hf_module.writes(schema) or schema.task == "embedding":
        return True  # the output layer means the same words, whatever is learned
    labels = original.get("id2label")
    if schema.task == "reward":
        return isinstance(labels, dict) and len(labels) == 1
    if not isinstance(labels, dict) or not schema.labels:
        return False
    return [labels.get(str(index)) for index in range(len(labels))] == list(schema.labels)


def _without_head(state: dict[str, Tensor], config: dict[str, Any], schema: Schema) -> dict[str, Tensor]:
    """The body's tensors alone: a classifier of other labels is no start, even where its shape would fit."""
    prefix = hf_module.task_class(hf_module.parse_config(config), schema).base_model_prefix + "."
    body = {name: tensor for name, tensor in state.items() if name.startswith(prefix)}
    return body or state  # a checkpoint of a body alone has no prefix


def _skeleton(arguments: dict[str, Any], schema: Schema, folder: Path, state: dict[str, Tensor] | None = None) -> nn.Module:
    """The network without memory for its numbers. ``state`` (where it is read) or a limit bounds the layers that are made even so."""
    layers = hf_module.claimed_layers(arguments["config"])
    most = _MOST_LAYERS if state is None else len(state) + _SLACK_LAYERS
    if layers > most:
        what = f"expected at most {most}" if state is None else f"its weight files hold {len(state)} tensors"
        raise ModelError(f"model {str(folder)!r}: config.json describes {layers!r} layers, {what}. Copy the folder again")
    try:
        with torch.device("meta"):
            return hf_module.build_transformers(schema=schema, **arguments)
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:  # sizes that make no network
        raise ModelError(f"model {str(folder)!r}: config.json describes no network ({error}). Copy the folder again") from error


def _refuse_wrong_weights(skeleton: nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    """Compare sizes before memory is taken: a configuration may claim anything."""
    claimed = sum(parameter.numel() for parameter in skeleton.get_submodule(hf_module.body_name(skeleton)).parameters())
    held = sum(tensor.numel() for tensor in state.values())
    if claimed > 2 * held + _SLACK:
        raise ModelError(
            f"model {str(folder)!r}: config.json describes {claimed!r} numbers, its weight files hold {held!r}. Copy the folder again"
        )


def _with_own_head(arguments: dict[str, Any], schema: Schema, state: dict[str, Tensor], folder: Path) -> tuple[nn.Module, list[str]]:
    """The architecture's class for the task, and the names of its parts outside the body, and of a pooler without weights."""
    config = hf_module.parse_config(arguments["config"])
    module, info = hf_module.from_state(hf_module.task_class(config, schema), config, state)
    if hf_module.writes(schema):
        _new_poolers(info, "", folder)  # nothing may be missing
        return module, []
    body = hf_module.body_name(module)
    poolers = _new_poolers(info, f"{body}.", folder)
    return module, poolers + [name for name, _ in module.named_children() if name != body]


def _with_new_head(arguments: dict[str, Any], schema: Schema, state: dict[str, Tensor], folder: Path) -> tuple[nn.Module, list[str]]:
    """The plain encoder under a new pool and head; its own pooler goes where nothing would read it or its weights are not there."""
    from transformers import MODEL_MAPPING

    config = hf_module.parse_config(arguments["config"])
    cls = hf_module.task_class(config, schema) if schema.task == "embedding" else MODEL_MAPPING[type(config)]
    body, info = hf_module.from_state(cls, config, state)
    poolers = _new_poolers(info, "", folder)
    own = getattr(body, "pooler", None)
    if poolers or (arguments["pool"] and isinstance(own, nn.Module) and any(True for _ in own.parameters())):
        body.pooler = None
        arguments["pooler"] = False
    module = hf_module.attach_head(body, schema, arguments["head"], arguments["pool"])
    parts = {"pool": module.pool, "head": module.head if schema.task != "embedding" else None}
    learning = [name for name, part in parts.items() if part is not None and any(True for _ in part.parameters())]
    return module, learning


def _new_poolers(info: dict[str, Any], prefix: str, folder: Path) -> list[str]:
    """Names of poolers that the checkpoint leaves out. Raises ModelError where it leaves out more of the body, or does not fit it."""
    for name, held, expected in sorted(info["mismatched_keys"]):
        if name.startswith(prefix):
            raise ModelError(
                f"model {str(folder)!r}: {name!r} has the shape {tuple(held)!r} in the weights, config.json expects {tuple(expected)!r}"
            )
    poolers: dict[str, None] = {}
    missing = sorted(name for name in info["missing_keys"] if name.startswith(prefix))
    for name in missing:
        parts = name.split(".")
        if "pooler" not in parts:
            raise ModelError(
                f"model {str(folder)!r}: the weights of the body lack {name!r} ({len(missing)!r} tensors in all). "
                "Expected the weights that belong to its config.json; copy the folder again"
            )
        poolers[".".join(parts[: parts.index("pooler") + 1])] = None
    return list(poolers)


def _preprocess(files: _Files, skeleton: nn.Module, schema: Schema, options: HeadOptions) -> ImagePreprocess | TextPreprocess:
    """From all that is there but the weights."""
    if schema.task != "image-classification":
        tokenizer = files.tokenizer or load_tokenizer(files.place)
        return text_preprocess(tokenizer, skeleton, schema, files.place, options.max_length)
    own = _image_preprocess(files.config, files.place)
    return own if options.size is None else replace(own, size=options.size)


def _image_preprocess(original: dict[str, Any], folder: Path) -> ImagePreprocess:
    # A folder that frostline wrote has it in its card, whole: the processor's file cannot say everything (the order bgr).
    saved = card_from_dict(original["frostline"], folder).card.preprocess if "frostline" in original else None
    return saved if isinstance(saved, ImagePreprocess) else read_image_preprocess(folder)


def _try_size(module: nn.Module, size: int, original: dict[str, Any], folder: Path) -> None:
    """Whether the network takes images of another size than its own: some have positions for one size only."""
    own = _image_preprocess(original, folder).size
    try:
        if size != own:
            with torch.no_grad(), hf_module.quiet():
                module.eval()(pixel_values=torch.zeros(1, 3, size, size))
    except (ValueError, RuntimeError) as error:
        raise ModelError(
            f"data.size got {size!r}, but {str(folder)!r} takes images of {own} pixels only ({error}). Set data.size={own}"
        ) from error
