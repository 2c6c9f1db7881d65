"""``adapt(model, peft.XConfig(…))``: a method of the ``peft`` package, as that package does it.

What Frostline has no file of its own for (LoHa, LoKr, OFT, BOFT, FourierFT …) is put into the network by
``peft.inject_adapter_in_model``, which changes layers in place and learns what the configuration says; the head learns too. The
configuration travels in the card as plain values. From a file it can only choose one of the package's own methods, and settings
through which a configuration could name code or files are refused (law 11). What a file may not say is refused when it is handed
over already: else a whole training would end with a model that cannot be read.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

from torch import nn

from frostline.adapt.settings import in_place, note
from frostline.adapt.targets import let_learn
from frostline.errors import ModelError, require
from frostline.models.model import Model
from frostline.recipe import AdaptRecipe

_PLAIN_ONLY = (
    "auto_mapping", "megatron_config", "corda_config", "eva_config", "lora_ga_config", "arrow_config", "layer_replication",
    "monteclora_config", "velora_config", "kasa_config", "use_bdlora",
)  # fmt: skip
"""Settings that name modules to import, files to read, or computations on data."""
_READS_OTHER_MODELS = ("XLORA", "SHADOW")
"""Methods whose configuration names folders or hub ids of further models: reading a file would read these, too."""
_NOT_KEPT = ("base_model_name_or_path", "revision", "peft_version", "inference_mode")


def is_config(value: Any) -> bool:
    """Whether it is a ``peft.PeftConfig``; looked up by name, so that ``peft`` need not be there for all else."""
    return any(kind.__name__ == "PeftConfig" and kind.__module__.startswith("peft.") for kind in type(value).__mro__)


def put_in_place(model: Model, config: Any, options: dict[str, Any], seed: int) -> None:
    """Change the network as ``config`` says and note it in the card. Raises ModelError for a method that cannot be put in place so."""
    import torch

    if options:
        raise ModelError(f"adapt: got {options!r} beside a {type(config).__name__}, which says everything. Leave them out")
    if config.is_prompt_learning:
        raise ModelError(
            f"adapt: got a {type(config).__name__}, expected a method that changes layers: virtual tokens are made here. "
            "Use: adapt=prompt, p-tuning or prefix"
        )
    if in_place(model) is not None or "adapt" in model.card.arguments:
        raise ModelError(f"adapt: got a {type(config).__name__}, but {model.card.name!r} holds an adapter already. Load the model anew")
    values = {key: _plain(value, key) for key, value in config.to_dict().items() if key not in _NOT_KEPT}
    if type(_configuration(values)) is not type(config):
        raise ModelError(
            f"adapt: got a {type(config).__name__}, which is read back as a {type(_configuration(values)).__name__}, expected one of "
            "peft's own configurations. Hand over one of them"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _inject(model.module, config)
    if model.output and is_tuner(model.module.get_submodule(model.output)):
        model.body = model.output = ""  # its weight is not all that it computes: the network makes the logits itself
    learning = [name for name, parameter in model.module.named_parameters() if _is_new(name, config, parameter)]
    note(model, {"method": "peft", "config": values, "learning": learning})


def check(model: Model, recipe: AdaptRecipe) -> None:
    """Raises ModelError where no configuration was handed over."""
    if (in_place(model) or {}).get("method") != "peft":
        raise ModelError(
            f"adapt: got 'peft', but {model.card.name!r} holds no adapter of that package. Hand its configuration over: "
            "fl.adapt(model, peft.LoHaConfig(…))"
        )


def apply(model: Model, recipe: AdaptRecipe, seed: int) -> None:
    """Freeze all but what the configuration lets learn, and the head."""
    let_learn(model, recipe, model.card.arguments["adapt"]["learning"])


def inject(module: nn.Module, settings: dict[str, Any]) -> nn.Module:
    """Put the adapter of a saved card in place. Raises ModelError for a configuration that is not plain."""
    values, learning = settings.get("config"), settings.get("learning")
    if not isinstance(values, dict) or not isinstance(learning, list) or not all(isinstance(name, str) for name in learning):
        raise ModelError(f"adapt.config: got {values!r}, expected the values of a peft.PeftConfig. Save the model again")
    config = _configuration(values)
    try:
        _inject(module, config)
    except Exception as error:  # peft checks little of what it is given, and fails with errors of many types
        raise ModelError(f"adapt.config: got {values!r}, which peft refuses: {error}. Save the model again") from error
    return module


def _configuration(values: dict[str, Any]) -> Any:
    """The configuration of plain values. Raises ModelError where it is none that a file may hold."""
    mapping = require("peft.mapping", "peft", "an adapter of the peft package")
    kind = mapping.PEFT_TYPE_TO_CONFIG_MAPPING.get(str(values.get("peft_type")))
    if kind is None:
        raise ModelError(f"adapt.config: got the peft_type {values.get('peft_type')!r}, which the installed peft does not know. Update it")
    if values["peft_type"] in _READS_OTHER_MODELS:
        raise ModelError(
            f"adapt.config: got the peft_type {values['peft_type']!r}, which reads further models and so cannot be saved and read back, "
            "expected another method. Use: adapt=lora"
        )
    named = next((key for key in _PLAIN_ONLY if values.get(key)), None)
    if named is not None:
        raise ModelError(f"adapt.config: got {named} {values[named]!r}, expected none: a file must not name code or data. Remove it")
    known = {field.name for field in dataclasses.fields(kind) if field.init}
    kept = {key: value for key, value in values.items() if key in known and key != "peft_type"}
    if "init_lora_weights" in kept:
        kept["init_lora_weights"] = True  # the weights are read afterwards
    try:
        return kind(**kept)
    except Exception as error:  # as above
        raise ModelError(f"adapt.config: got {kept!r}, which peft refuses: {error}. Save the model again") from error


def _inject(module: nn.Module, config: Any) -> None:
    peft = require("peft", "peft", "an adapter of the peft package")
    try:
        peft.inject_adapter_in_model(config, module)
    except ValueError as error:
        raise ModelError(f"adapt: got a {type(config).__name__}, which peft refuses: {error}. Change the configuration") from error


def is_tuner(part: nn.Module) -> bool:
    """Whether it is a layer that peft put around another one; looked up by name, as above."""
    return any(kind.__name__ == "BaseTunerLayer" for kind in type(part).__mro__)


def _is_new(name: str, config: Any, parameter: Any) -> bool:
    return bool(parameter.requires_grad) and ".base_layer." not in name and ".original_module." not in name


def _plain(value: Any, key: str) -> Any:
    """JSON values: sets as sorted lists, enumerations as their text. Raises ModelError for what is none."""
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, set | tuple | list):
        items = [_plain(item, key) for item in value]
        return sorted(items) if isinstance(value, set) else items
    if isinstance(value, dict):
        return {str(name): _plain(item, key) for name, item in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ModelError(
        f"adapt: got {key} {value!r}, which cannot be saved and read back, expected numbers, text, lists and dicts. Write it as text"
    )
