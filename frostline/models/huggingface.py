"""Models from a Hugging Face folder or hub id, through ``transformers``, without ever running code that lies beside them.

``config.json`` names an architecture (``model_type``), which must be one that ``transformers`` itself brings; an ``auto_map``
(code of the folder's own) is refused, or left aside where the architecture is built in. Weights go through
:func:`frostline.models.weights.read_weights` and come out as float32. A hub id is first copied to the local cache, its JSON,
tokenizer and weight files only, so that both ways are one.

Without ``head`` and ``pool`` the result is the architecture's own classification class, and its saved folder loads in
``transformers``. With either it is a :class:`frostline.models.hf_module.BodyWithHead`: ``body``, ``pool`` and ``head``.
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
from frostline.models.card import card_from_dict, load_tokenizer, read_json
from frostline.models.image_processor import read_image_preprocess
from frostline.models.model import Card, Model
from frostline.models.parts import find_blocks
from frostline.models.weights import read_weights

_OTHER_FILES = (
    "preprocessor_config.json",
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
_LONGEST = 512  # more tokens only where asked for: attention's cost grows with the square
_SLACK_LAYERS = 100  # some architectures (ALBERT) use one layer's weights many times
_SLACK = 30_000_000  # numbers that a configuration may describe beyond its files: a pooler, say


@dataclass(frozen=True, kw_only=True)
class HeadOptions:
    """What is asked of a model beyond its folder; each may be left out."""

    head: tuple[str, ...] = ()
    pool: str | None = None
    size: int | None = None
    max_length: int | None = None


def from_folder_or_hub(name: str, schema: Schema, options: HeadOptions | None = None) -> Model:
    """A pretrained body with a head for ``schema``. New weights come from torch's global generator, which the caller seeds."""
    options = options or HeadOptions()
    folder = local_folder(name)
    original = read_json(folder / "config.json")
    config = _config_for(original, schema, folder)
    state = read_state(folder)
    if not _same_labels(original, schema):
        state = _without_head(state, config, schema)
    arguments: dict[str, Any] = {"config": config, "head": list(options.head), "pool": options.pool, "pooler": True}
    _refuse_wrong_weights(arguments, schema, state, folder)
    module, head = (_with_new_head if options.head or options.pool else _with_own_head)(arguments, schema, state, folder)
    preprocess: ImagePreprocess | TextPreprocess
    if schema.task == "image-classification":
        preprocess = _image_preprocess(folder, original, module, options.size)
    else:
        preprocess = _text_preprocess(folder, module, options.max_length)
    source = f"{name} (the code beside it was not used)" if "auto_map" in original else name
    card = Card(name="transformers", arguments=arguments, schema=schema, preprocess=preprocess, pretrained=True, source=source)
    body = hf_module.body_name(module)
    return Model(module=module, card=card, blocks=[f"{body}.{block}" for block in find_blocks(module.get_submodule(body))], head=head)


def local_folder(name: str) -> Path:
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
        return _from_hub(name)
    except Exception as error:  # the hub's client lets errors of several network libraries through
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"model {name!r} is no local folder and could not be fetched from the hub ({type(error).__name__}: {reason}). "
            "Copy its config.json, weights and tokenizer or preprocessor files into a folder and give that: model.name=FOLDER"
        ) from error


def _from_hub(name: str) -> Path:
    """Fetch the files that are read here, and no others, into the cache of ``transformers``."""
    from transformers.utils import cached_file

    with hf_module.quiet():
        folder = Path(str(cached_file(name, "config.json"))).parent
        for file in _OTHER_FILES:
            _fetch_if_there(name, file)
        for weights in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"):
            if _fetch_if_there(name, weights):
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
    dropped = ("auto_map", "frostline", "torch_dtype", "num_labels", "_name_or_path", "transformers_version")
    labels = schema.labels or ("LABEL_0",)
    return {name: value for name, value in original.items() if name not in dropped} | {
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
        "problem_type": _PROBLEMS[schema.target],
        "dtype": "float32",
    }


def _same_labels(original: dict[str, Any], schema: Schema) -> bool:
    """Whether the checkpoint's own classifier already means what ``schema`` asks for, so that it may stay."""
    labels = original.get("id2label")
    if not isinstance(labels, dict) or not schema.labels:
        return False
    return [labels.get(str(index)) for index in range(len(labels))] == list(schema.labels)


def _without_head(state: dict[str, Tensor], config: dict[str, Any], schema: Schema) -> dict[str, Tensor]:
    """The body's tensors alone: a classifier of other labels is no start, even where its shape would fit."""
    prefix = hf_module.classification_class(hf_module.parse_config(config), schema).base_model_prefix + "."
    body = {name: tensor for name, tensor in state.items() if name.startswith(prefix)}
    return body or state  # a checkpoint of a body alone has no prefix


def _refuse_wrong_weights(arguments: dict[str, Any], schema: Schema, state: dict[str, Tensor], folder: Path) -> None:
    """Compare sizes before memory is taken: a configuration may claim anything."""
    layers = hf_module.claimed_layers(arguments["config"])
    if layers > len(state) + _SLACK_LAYERS:
        raise ModelError(
            f"model {str(folder)!r}: config.json describes {layers!r} layers, its weight files hold {len(state)} tensors. "
            "Copy the folder again"
        )
    try:
        with torch.device("meta"):
            skeleton = hf_module.build_transformers(schema=schema, **arguments)
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:  # sizes that make no network
        raise ModelError(f"model {str(folder)!r}: config.json describes no network ({error}). Copy the folder again") from error
    claimed = sum(parameter.numel() for parameter in skeleton.get_submodule(hf_module.body_name(skeleton)).parameters())
    held = sum(tensor.numel() for tensor in state.values())
    if claimed > 2 * held + _SLACK:
        raise ModelError(
            f"model {str(folder)!r}: config.json describes {claimed!r} numbers, its weight files hold {held!r}. Copy the folder again"
        )


def _with_own_head(arguments: dict[str, Any], schema: Schema, state: dict[str, Tensor], folder: Path) -> tuple[nn.Module, list[str]]:
    """The architecture's classification class, and the names of its parts outside the body, and of a pooler without weights."""
    config = hf_module.parse_config(arguments["config"])
    module, info = hf_module.from_state(hf_module.classification_class(config, schema), config, state)
    body = hf_module.body_name(module)
    poolers = _new_poolers(info, f"{body}.", folder)
    return module, poolers + [name for name, _ in module.named_children() if name != body]


def _with_new_head(arguments: dict[str, Any], schema: Schema, state: dict[str, Tensor], folder: Path) -> tuple[nn.Module, list[str]]:
    """The plain encoder under a new pool and head; its own pooler goes where nothing would read it or its weights are not there."""
    from transformers import MODEL_MAPPING

    config = hf_module.parse_config(arguments["config"])
    body, info = hf_module.from_state(MODEL_MAPPING[type(config)], config, state)
    poolers = _new_poolers(info, "", folder)
    own = getattr(body, "pooler", None)
    if poolers or (arguments["pool"] and isinstance(own, nn.Module) and any(True for _ in own.parameters())):
        body.pooler = None
        arguments["pooler"] = False
    module = hf_module.attach_head(body, schema, arguments["head"], arguments["pool"])
    return module, (["pool"] if module.pool is not None and any(True for _ in module.pool.parameters()) else []) + ["head"]


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


def _image_preprocess(folder: Path, original: dict[str, Any], module: nn.Module, size: int | None) -> ImagePreprocess:
    # A folder that frostline wrote has it in its card, whole: the processor's file cannot say everything (the order bgr).
    saved = card_from_dict(original["frostline"], folder).card.preprocess if "frostline" in original else None
    preprocess = saved if isinstance(saved, ImagePreprocess) else read_image_preprocess(folder)
    if size is None or size == preprocess.size:
        return preprocess
    try:
        with torch.no_grad(), hf_module.quiet():
            module.eval()(pixel_values=torch.zeros(1, 3, size, size))
    except (ValueError, RuntimeError) as error:
        raise ModelError(
            f"data.size got {size!r}, but {str(folder)!r} takes images of {preprocess.size} pixels only ({error}). "
            f"Set data.size={preprocess.size}"
        ) from error
    return replace(preprocess, size=size)


def _text_preprocess(folder: Path, module: nn.Module, max_length: int | None) -> TextPreprocess:
    tokenizer = load_tokenizer(folder)
    if not tokenizer.is_fast:
        raise ModelError(
            f"tokenizer of {str(folder)!r} is a {type(tokenizer).__name__!r} without a fast version, expected one with tokenizer.json"
        )
    if tokenizer.pad_token is None:
        raise ModelError(
            f"tokenizer of {str(folder)!r} has pad_token None, expected a padding token. Set pad_token in its tokenizer_config.json"
        )
    longest = min(tokenizer.model_max_length, _positions(module))
    if max_length is not None and max_length > longest:
        raise ModelError(
            f"data.max_length got {max_length!r}, but {str(folder)!r} takes at most {longest} tokens. Set data.max_length={longest}"
        )
    return TextPreprocess(tokenizer=tokenizer, max_length=max_length or min(longest, _LONGEST))


def _positions(module: nn.Module) -> int:
    """How many tokens have a position: RoBERTa's table starts behind its padding index, so it is longer than that."""
    config: Any = module.get_submodule(hf_module.body_name(module)).config
    count = getattr(config, "max_position_embeddings", None) or 10**9
    for name, part in module.named_modules():
        if name.endswith("position_embeddings") and isinstance(part, nn.Embedding) and part.padding_idx is not None:
            return part.num_embeddings - part.padding_idx - 1
    return int(count)
