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
from typing import Any

from torch import Tensor, nn

from frostline.adapt.lora_layers import Lora, LoRAConv, LoRAEmbedding
from frostline.adapt.settings import in_place
from frostline.adapt.targets import saved_modules
from frostline.adapt.virtual import Place, Virtual, body_of, find, place_of
from frostline.adapt.wrapper import is_transposed, wrappers
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


PEFT_METHODS = ("lora", "ia3", "vera", "prompt", "p-tuning", "prefix")
"""The methods that PEFT's format has a place for."""


def config_of(model: Model, name: str) -> dict[str, Any]:
    """The configuration of an adapter. Raises ModelError for a method that PEFT's format has no place for."""
    settings = in_place(model)
    method = settings["method"] if settings is not None else model.recipe.adapt.method
    common = {
        "base_model_name_or_path": None,
        "inference_mode": True,
        "modules_to_save": saved_modules(model, model.recipe.adapt) or None,
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
    for place in saved_modules(model, model.recipe.adapt):
        found |= {
            f"{prefix}{place}.{leaf}": tensor for leaf, tensor in model.module.get_submodule(place).state_dict(keep_vars=True).items()
        }
    return found


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
        return {**settings, "targets": _in_order(settings["targets"], model)}
    if method == "ia3":
        targets = _in_order([key.removeprefix(PREFIX).removesuffix(".ia3_l") for key in tensors if key.endswith(".ia3_l")], model)
        return {"method": "ia3", "targets": targets, "feedforward": [t for t in targets if len(tensors[f"{PREFIX}{t}.ia3_l"]) == 1]}
    if method == "vera":
        targets = [key.removeprefix(PREFIX).removesuffix(".vera_lambda_b") for key in tensors if key.endswith(".vera_lambda_b")]
        return {
            "method": "vera",
            "rank": config.get("r"),
            "dropout": config.get("vera_dropout", 0.0),
            "targets": _in_order(targets, model),
            "seed": 0,
        }
    common = {"method": method, "tokens": config.get("num_virtual_tokens"), "hidden": 0, "body": body_of(model), "seed": 0}
    return common if method == "prefix" else {**common, "strip": _task_type(model) != "SEQ_CLS" or _is_causal(model)}


def recipe_values(settings: dict[str, Any]) -> dict[str, Any]:
    """The fields of a recipe under which the settings would come out, so that training can go on from a file's adapter."""
    patterns = {"rank_pattern": "ranks", "alpha_pattern": "alphas", "encoder_width": "hidden"}
    names = ("method", "rank", "alpha", "dropout", "targets", "rslora", "dora", "init", "feedforward", "tokens")
    same = {name: settings[name] for name in names if name in settings}
    return {**same, **{name: settings[key] for name, key in patterns.items() if key in settings}}


def _in_order(targets: list[str], model: Model) -> list[str]:
    """In the order of the network's modules, as targets are always listed; what the network does not have comes last."""
    known = {name: index for index, (name, _) in enumerate(model.module.named_modules(remove_duplicate=False))}
    return sorted(targets, key=lambda name: known.get(name, len(known)))


def _lora_config(model: Model, name: str) -> dict[str, Any]:
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
        "lora_dropout": in_place(model)["dropout"],  # type: ignore[index]
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
    shapes = {
        key.removeprefix(PREFIX).removesuffix(end): len(tensor)
        for key, tensor in tensors.items()
        for end in (".lora_A.weight", ".lora_embedding_A")
        if key.endswith(end)
    }
    pattern = config.get("alpha_pattern") or {}
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
