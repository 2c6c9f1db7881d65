"""Between an adapter in a model and PEFT's format: the configuration's fields, and the names of its tensors.

    LoRA      base_model.model.TARGET.lora_A.weight, lora_B.weight; embeddings lora_embedding_A, _B; DoRA lora_magnitude_vector
    IA³       base_model.model.TARGET.ia3_l
    VeRA      base_model.model.TARGET.vera_lambda_b, _d; base_model.vera_A, _B
    prompts   prompt_embeddings: what stands for the virtual tokens, whatever made it
    modules   base_model.model.NAME (prompts: base_model.NAME) of the head and of modules_to_save

A configuration from a file is read for its plain numbers only. Targets and ranks are taken from the tensors' names and shapes, so
neither a regular expression nor a class or path of the file is used (law 11); what would make another network than we build is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from frostline.adapt.lora import is_target
from frostline.adapt.lora_layers import Lora, LoRAConv, LoRAEmbedding
from frostline.adapt.parked import module_tensors, places
from frostline.adapt.settings import in_place
from frostline.adapt.virtual import Place, Virtual, body_of, find, place_of
from frostline.adapt.wrapper import Wrapper, is_transposed, wrappers
from frostline.errors import ModelError
from frostline.models.model import Model

PREFIX = "base_model.model."
PROMPT = "prompt_embeddings"
KINDS = {"LORA": "lora", "IA3": "ia3", "VERA": "vera", "PROMPT_TUNING": "prompt", "P_TUNING": "prompt", "PREFIX_TUNING": "prefix"}
_TASKS = {"text-classification": "SEQ_CLS", "token-classification": "TOKEN_CLS"}
_CHANGES_THE_NETWORK = (
    "lora_bias", "layer_replication", "trainable_token_indices", "target_parameters", "alora_invocation_tokens", "use_qalora",
    "arrow_config", "kasa_config", "velora_config", "monteclora_config", "use_bdlora", "megatron_config",
)  # fmt: skip
"""Settings of PEFT that we have no layer for."""
_NARROWS_TARGETS = ("exclude_modules", "layers_to_transform", "layers_pattern")


PEFT_METHODS = ("lora", "ia3", "vera", "prompt", "p-tuning", "prefix")
"""The methods that PEFT's format has a place for."""


def _base_name(model: Model) -> str | None:
    """The folder or the hub's name by which ``transformers`` reads the base; a single file it does not."""
    name = model.recipe.model.name
    return name if name and name == model.card.source and not Path(name).is_file() else None


def config_of(model: Model, name: str) -> dict[str, Any]:
    """The configuration of an adapter. Raises ModelError for a method that PEFT's format has no place for."""
    settings = in_place(model)
    method = settings["method"] if settings is not None else model.recipe.adapt.method
    common = {
        "base_model_name_or_path": _base_name(model),
        "inference_mode": True,
        "modules_to_save": places(model) or None,
        "task_type": _task_type(model),
    }
    if settings is not None and method == "lora":
        return {"peft_type": "LORA", **common, **_lora_config(model, name)}
    if settings is not None and method == "ia3":
        own = {"target_modules": settings["targets"], "feedforward_modules": settings["feedforward"]}
        return {"peft_type": "IA3", **common, **own, "fan_in_fan_out": _transposed(model), "init_ia3_weights": True}
    if settings is not None and method == "vera":
        own = {"r": settings["rank"], "target_modules": settings["targets"], "vera_dropout": settings["dropout"], "save_projection": True}
        return {"peft_type": "VERA", **common, **own, "projection_prng_key": 0, "fan_in_fan_out": _transposed(model)}
    if settings is not None and method in ("prompt", "p-tuning", "prefix"):
        return {**common, **_virtual_config(model, method)}
    raise ModelError(
        f"save_adapter: got {method!r}, which PEFT's format has no place for, expected one of {', '.join(PEFT_METHODS)}. "
        "Save the whole model: frostline.models.save.save_model(model, folder)"
    )


def tensors_of(model: Model, name: str) -> dict[str, Tensor]:
    """The tensors of an adapter and of the modules that go with it, under PEFT's names."""
    found: dict[str, Tensor] = {}
    for target, part in wrappers(model.module):
        if isinstance(part, Lora):
            found |= _lora_tensors(f"{PREFIX}{target}", part, part.piece(name))
        else:
            found |= {f"{PREFIX}{target}.{leaf}": getattr(part, leaf) for leaf in part.LEARNING}
    pair = getattr(model.module, "vera_projections", None)
    if pair is not None:
        found |= {"base_model.vera_A": pair.vera_A, "base_model.vera_B": pair.vera_B}
    tokens: list[Virtual] = find(model.module)
    prefix = "base_model." if tokens else PREFIX
    if tokens:
        found[PROMPT] = tokens[0].values()
    return {**found, **{f"{prefix}{key}": tensor for key, tensor in module_tensors(model, name).items()}}


def settings_from(config: dict[str, Any], tensors: dict[str, Tensor], model: Model) -> dict[str, Any]:
    """The settings that make the layers for a file's adapter. Raises ModelError for a configuration that we cannot carry out."""
    kind = config.get("peft_type")
    method = KINDS.get(str(kind))
    if method is None:
        raise ModelError(f"adapter_config.json: got the peft_type {kind!r}, expected one of {', '.join(KINDS)}. Load it with peft itself")
    strange = next((key for key in _CHANGES_THE_NETWORK if config.get(key)), None)
    if strange is not None or config.get("bias", "none") != "none":
        key = strange or "bias"
        raise ModelError(f"adapter_config.json: got {key} {config[key]!r}, which no layer here has. Load it with peft itself")
    if method == "lora":
        settings = _lora_settings(config, tensors)
        return {**settings, "targets": _in_order(settings["targets"], config, model)}
    if method == "ia3":
        vectors = _with_end(tensors, ".ia3_l")
        targets = _in_order(vectors, config, model)
        return {"method": "ia3", "targets": targets, "feedforward": [t for t in targets if _scales_input(config, t, vectors[t])]}
    if method == "vera":
        return {
            "method": "vera",
            "rank": config.get("r"),
            "dropout": config.get("vera_dropout", 0.0),
            "targets": _in_order(_with_end(tensors, ".vera_lambda_b"), config, model),
            "seed": 0,
        }
    common = {"method": method, "tokens": config.get("num_virtual_tokens"), "hidden": 0, "body": body_of(model), "seed": 0}
    return common if method == "prefix" else {**common, "strip": _task_type(model) != "SEQ_CLS" or _is_causal(model)}


def _with_end(tensors: dict[str, Tensor], end: str) -> dict[str, Tensor]:
    """The targets that have a tensor of this kind, and it. Raises ModelError for one that is a single number."""
    found = {key: tensor for key, tensor in tensors.items() if key.endswith(end)}
    single = next((key for key, tensor in found.items() if tensor.dim() == 0), None)
    if single is not None:
        raise ModelError(f"adapter_model.safetensors: got a single number as {single!r}, expected rows. Copy the folder again")
    return {key.removeprefix(PREFIX).removesuffix(end): tensor for key, tensor in found.items()}


def _scales_input(config: dict[str, Any], target: str, vector: Tensor) -> bool:
    """Whether the configuration lists the end of the target's name among the feed-forward layers, as PEFT reads it.

    Where it has an expression instead, that is not run: of a linear layer the vector's shape says it too.
    """
    names = config.get("feedforward_modules")
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return any(target.endswith(name) for name in names)
    if vector.dim() != 2:
        raise ModelError(f"adapter_config.json: got feedforward_modules {names!r}, expected a list of names. Write them out")
    return len(vector) == 1


def recipe_values(settings: dict[str, Any]) -> dict[str, Any]:
    """The fields of a recipe under which the settings would come out, so that training can go on from a file's adapter."""
    patterns = {"rank_pattern": "ranks", "alpha_pattern": "alphas", "encoder_width": "hidden"}
    names = ("method", "rank", "alpha", "dropout", "targets", "rslora", "dora", "init", "feedforward", "tokens")
    same = {name: settings[name] for name in names if name in settings}
    return {**same, **{name: settings[key] for name, key in patterns.items() if key in settings}}


def _in_order(targets: Iterable[str], config: dict[str, Any], model: Model) -> list[str]:
    """In the order of the network's modules, as targets are always listed; what the network does not have comes last.

    Raises ModelError where there is none, or one lacks that the configuration lists.
    """
    targets = list(targets)
    missing = next((name for name in _listed(config, model) if name not in targets), None)
    if not targets or missing is not None:
        what = "no tensors of an adapter" if not targets else f"no tensors for {missing!r}, which adapter_config.json lists as a target"
        raise ModelError(f"adapter_model.safetensors: got {what}, expected one for each target. Copy the folder again")
    known = {name: index for index, (name, _) in enumerate(model.module.named_modules(remove_duplicate=False))}
    return sorted(targets, key=lambda name: known.get(name, len(known)))


def _listed(config: dict[str, Any], model: Model) -> list[str]:
    """The layers that ``target_modules`` means, as PEFT reads a list; none where it is an expression, or something narrows it down."""
    names = config.get("target_modules")
    if not isinstance(names, list) or any(config.get(key) for key in _NARROWS_TARGETS):
        return []
    own = tuple(f"{place}." for place in places(model))
    return [
        name
        for name, part in model.module.named_modules()
        if any(name == end or name.endswith(f".{end}") for end in names)
        and is_target(part.base if isinstance(part, Wrapper) else part)
        and not f"{name}.".startswith(own)
    ]


def _lora_config(model: Model, name: str) -> dict[str, Any]:
    settings = in_place(model) or {}
    parts = {target: part for target, part in wrappers(model.module) if isinstance(part, Lora)}
    pieces = {target: part.piece(name) for target, part in parts.items()}
    grouped = next((target for target, part in parts.items() if isinstance(part, LoRAConv) and part.base.groups > 1), None)
    if grouped is not None:
        raise ModelError(f"save_adapter: {grouped!r} is a grouped convolution, which PEFT adapts otherwise. Save the whole model")
    variant = next(iter(pieces.values())).variant
    ranks = {target: len(piece.factors()[0]) for target, piece in pieces.items()}
    alphas = {t: piece.scaling * (math.sqrt(ranks[t]) if variant.rslora else ranks[t]) for t, piece in pieces.items()}
    rank, alpha = max(ranks.values(), key=[*ranks.values()].count), max(alphas.values(), key=[*alphas.values()].count)
    return {
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": {**settings, **settings.get("adapters", {}).get(name, {})}["dropout"],
        "target_modules": list(pieces),
        "rank_pattern": {target: value for target, value in ranks.items() if value != rank},
        "alpha_pattern": {target: value for target, value in alphas.items() if value != alpha},
        "use_rslora": variant.rslora,
        "use_dora": variant.dora,
        "bias": "none",
        "fan_in_fan_out": _transposed(model),
        "init_lora_weights": True,
    }


def _lora_tensors(place: str, part: Lora, piece: Lora) -> dict[str, Tensor]:
    a, b = piece.factors()
    names = ("lora_embedding_A", "lora_embedding_B") if isinstance(part, LoRAEmbedding) else ("lora_A.weight", "lora_B.weight")
    found = {f"{place}.{names[0]}": a, f"{place}.{names[1]}": b}
    return {**found, f"{place}.lora_magnitude_vector": piece.lora_magnitude_vector} if piece.variant.dora else found


def _lora_settings(config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    begin = config.get("init_lora_weights", True)
    if isinstance(begin, str) and begin.startswith(("pissa", "olora", "corda", "loftq", "lora_ga")):
        raise ModelError(
            f"adapter_config.json: got init_lora_weights {begin!r}, with which the base was changed too, expected a plain adapter. "
            "Save it with peft's path_initial_model_for_weight_conversion"
        )
    shapes = {t: len(a) for end in (".lora_A.weight", ".lora_embedding_A") for t, a in _with_end(tensors, end).items()}
    pattern = config.get("alpha_pattern") or {}
    if not isinstance(pattern, dict):
        raise ModelError(f"adapter_config.json: got alpha_pattern {pattern!r}, expected numbers by name. Copy the folder again")
    strange = next((key for key in pattern if not re.fullmatch(r"[\w.\-]{1,300}", str(key))), None)
    if strange is not None:
        raise ModelError(f"adapter_config.json: alpha_pattern has {strange!r}, expected plain names of layers. Write them out")
    alphas = {}
    for target in shapes:
        key = next((key for key in pattern if target == key or target.endswith(f".{key}")), None)
        if key is not None:
            alphas[target] = pattern[key]
    return {
        "method": "lora", "rank": config.get("r"), "alpha": config.get("lora_alpha"), "dropout": config.get("lora_dropout", 0.0),
        "targets": list(shapes), "seed": 0, "ranks": {t: r for t, r in shapes.items() if r != config.get("r")}, "alphas": alphas,
        "rslora": config.get("use_rslora", False), "dora": config.get("use_dora", False), "init": "default",
    }  # fmt: skip


def _virtual_config(model: Model, method: str) -> dict[str, Any]:
    place: Place = place_of(model.module, body_of(model))
    own: dict[str, Any] = {"num_virtual_tokens": find(model.module)[0].tokens, "num_layers": place.layers}
    if method == "prefix":
        own |= {"token_dim": place.heads * place.head_width, "num_attention_heads": place.heads, "prefix_projection": False}
        return {"peft_type": "PREFIX_TUNING", **own, "num_transformer_submodules": 1 + place.two_parts, "encoder_hidden_size": place.width}
    own |= {"token_dim": place.width, "num_attention_heads": place.heads, "num_transformer_submodules": 1}
    # What P-tuning's network gave is a prompt like any other.
    return {"peft_type": "PROMPT_TUNING", **own, "prompt_tuning_init": "RANDOM"}


def _task_type(model: Model) -> str | None:
    config = getattr(model.module, "config", None)
    if model.card.schema.task in _TASKS and not model.output:
        return _TASKS[model.card.schema.task]
    if bool(getattr(config, "is_encoder_decoder", False)):
        return "SEQ_2_SEQ_LM"
    return "CAUSAL_LM" if model.output or _is_causal(model) else None


def _is_causal(model: Model) -> bool:
    if not hasattr(model.module, "config"):
        return False
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    kind = type(model.module.config)
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_MASKED_LM_MAPPING


def _transposed(model: Model) -> bool:
    return any(is_transposed(part.base) or getattr(part.base, "transposed", False) for _, part in wrappers(model.module))


def places_of(model: Model, name: str) -> dict[str, nn.Parameter | Tensor]:
    """Where a file's tensors go: PEFT's name → the parameter itself. For adapters as :func:`settings_from` makes them."""
    found = {key: tensor for key, tensor in tensors_of(model, name).items() if key != PROMPT}
    tokens = find(model.module)
    return {**found, PROMPT: tokens[0].embedding.weight} if tokens else found
