"""A model's card as JSON, and back with every value checked: the file it stands in may come from anywhere (law 11)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from frostline.data.dataset import Schema
from frostline.data.preprocess import ImagePreprocess, TextPreprocess
from frostline.errors import ModelError
from frostline.models.hf_module import quiet
from frostline.models.model import Card, Model

_LARGEST_SIDE = 16_384
_LARGEST_LENGTH = 10_000_000
_LARGEST_NUMBER = 1e6
_SMALLEST_SPREAD = 1e-6


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What config.json says under ``frostline``."""

    card: Card
    blocks: list[str]
    head: list[str]
    body: str
    output: str
    channels_last: bool
    """Whether convolution weights lie in memory channel by channel last, which decides the last bits of the results."""


def card_to_dict(model: Model, channels_last: bool) -> dict[str, Any]:
    """Plain JSON values. Raises ModelError where an argument is none."""
    card = model.card
    values = {
        "name": card.name,
        "arguments": card.arguments,
        "schema": asdict(card.schema),
        "preprocess": card.preprocess.to_dict(),
        "pretrained": card.pretrained,
        "source": card.source,
        "blocks": model.blocks,
        "head": model.head,
        "body": model.body,
        "output": model.output,
        "channels_last": channels_last,
    }
    try:
        return json.loads(json.dumps(values, ensure_ascii=False, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"the card of {card.name!r} holds a value that is not plain JSON: {error}. Expected numbers, text, lists and dicts"
        ) from error


def card_from_dict(values: Any, folder: Path) -> Saved:
    """The opposite. Raises ModelError for a missing, unknown or ill-typed value, naming it; the tokenizer is read from ``folder``."""
    where = f"{folder / 'config.json'}: frostline"
    kinds = {
        "name": str,
        "arguments": dict,
        "schema": dict,
        "preprocess": dict,
        "pretrained": bool,
        "source": str,
        "blocks": list,
        "head": list,
        "body": str,
        "output": str,
        "channels_last": bool,
    }
    if isinstance(values, dict):  # models of version 0.1.0 have no such names
        values = {"body": "", "output": "", **values}
    _check(values, kinds, where)
    for name in ("blocks", "head"):
        if not all(isinstance(item, str) for item in values[name]):
            raise ModelError(f"{where}.{name} got {values[name]!r}, expected a list of module names. Save the model again")
    schema = _schema(values["schema"], f"{where}.schema")
    card = Card(
        name=values["name"],
        arguments=values["arguments"],
        schema=schema,
        preprocess=_preprocess(values["preprocess"], schema, folder),
        pretrained=values["pretrained"],
        source=values["source"],
    )
    return Saved(card=card, **{name: values[name] for name in ("blocks", "head", "body", "output", "channels_last")})


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ModelError naming the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{str(path)!r} cannot be read as JSON: {error}. Copy the model's folder again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{str(path)!r} holds {str(content)[:40]!r}, expected a JSON object")
    return content


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder, from its JSON files alone. Raises ModelError where there is none."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    ours = read_json(folder / "config.json").get("model_type") == "frostline"
    try:
        with quiet():
            if ours:
                return PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
            return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # tokenizers of many kinds fail with errors of many types
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"tokenizer of {str(folder)!r} cannot be loaded: {reason}. Copy tokenizer.json and tokenizer_config.json beside config.json"
        ) from error


def _schema(values: dict[str, Any], where: str) -> Schema:
    _check(values, {"task": str, "target": str, "labels": list}, where)
    hints = get_type_hints(Schema)
    for name in ("task", "target"):
        if values[name] not in get_args(hints[name]):
            raise ModelError(f"{where}.{name} got {values[name]!r}, expected one of {', '.join(get_args(hints[name]))}")
    labels = values["labels"]
    if not all(isinstance(label, str) for label in labels) or len(set(labels)) < len(labels):
        raise ModelError(f"{where}.labels got {str(labels)[:80]!r}, expected different names")
    return Schema(task=values["task"], target=values["target"], labels=tuple(labels))


def _preprocess(values: dict[str, Any], schema: Schema, folder: Path) -> ImagePreprocess | TextPreprocess:
    where = f"{folder / 'config.json'}: frostline.preprocess"
    if schema.task != "image-classification":
        some = {name: kind for name, kind in (("start", int), ("prompt", str)) if name in values}
        _check(values, {"kind": str, "max_length": int, "inputs": list, **some}, where)
        _check_kind(values, "text", where)
        if not 1 <= values["max_length"] <= _LARGEST_LENGTH:
            raise ModelError(f"{where}.max_length got {values['max_length']!r}, expected a number of tokens")
        if not 0 <= values.get("start", 0) < _LARGEST_LENGTH:
            raise ModelError(f"{where}.start got {values['start']!r}, expected a token's id. Save the model again")
        if not all(isinstance(name, str) for name in values["inputs"]):
            raise ModelError(f"{where}.inputs got {values['inputs']!r}, expected names of the network's arguments. Save the model again")
        if "{source}" not in values.get("prompt", "{source}"):
            raise ModelError(f"{where}.prompt got {values['prompt']!r}, expected {{source}} in it. Save the model again")
        given = {name: values[name] for name in ("max_length", *some)}
        return TextPreprocess(tokenizer=load_tokenizer(folder), inputs=tuple(values["inputs"]), **given)
    kinds = {"kind": str, "size": int, "scale": float, "mean": list, "std": list, "interpolation": str, "channels": str, "crop": float}
    _check(values, kinds, where)
    _check_kind(values, "image", where)
    hints = get_type_hints(ImagePreprocess)
    for name in ("interpolation", "channels"):
        if values[name] not in get_args(hints[name]):
            raise ModelError(f"{where}.{name} got {values[name]!r}, expected one of {', '.join(get_args(hints[name]))}")
    count = 1 if values["channels"] == "grey" else 3
    for name, least in (("mean", -_LARGEST_NUMBER), ("std", _SMALLEST_SPREAD)):
        if len(values[name]) not in (count, 3) or not all(_is_number(number, least) for number in values[name]):
            raise ModelError(f"{where}.{name} got {str(values[name])[:80]!r}, expected {count} numbers from {least} on. Save it again")
    if not _is_number(values["scale"], _SMALLEST_SPREAD):
        raise ModelError(f"{where}.scale got {values['scale']!r}, expected a number above 0. Save the model again")
    if not 1 <= values["size"] <= _LARGEST_SIDE or not 0 < values["crop"] <= 1:
        raise ModelError(
            f"{where}: got size {values['size']!r} and crop {values['crop']!r}, expected pixels up to {_LARGEST_SIDE} and a share up to 1"
        )
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items() if name != "kind"}
    return ImagePreprocess(**fields)


def _check_kind(values: dict[str, Any], kind: str, where: str) -> None:
    if values["kind"] != kind:
        raise ModelError(f"{where}.kind got {values['kind']!r}, expected {kind!r}, since that is what the task reads. Save the model again")


def _is_number(value: Any, least: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= _LARGEST_NUMBER


def _check(values: Any, kinds: dict[str, type], where: str) -> None:
    """That ``values`` is a dict of exactly these names, each of its type (a whole number will do for a float)."""
    if not isinstance(values, dict):
        raise ModelError(f"{where} got {str(values)[:40]!r}, expected an object with {', '.join(kinds)}. Save the model again")
    for name, kind in kinds.items():
        value = values.get(name)
        fits = isinstance(value, int | float) if kind is float else isinstance(value, kind)
        if not fits or (isinstance(value, bool) and kind is not bool):
            raise ModelError(f"{where}.{name} got {str(value)[:40]!r}, expected {kind.__name__}. Save the model again")
    if unknown := sorted(set(values) - set(kinds)):
        raise ModelError(
            f"{where}: unknown key {unknown[0]!r}, expected {', '.join(kinds)}. It was written by another version of frostline"
        )
