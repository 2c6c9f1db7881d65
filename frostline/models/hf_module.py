"""The modules of ``transformers`` architectures: built from a configuration, and filled from a state dict.

Nothing here reads a folder: huggingface.py brings configuration and weights, save.py and load.py the saved ones. Only
architectures that ``transformers`` itself brings can be named, because a configuration is looked up in its own table.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from frostline.data.dataset import Schema
from frostline.errors import ModelError
from frostline.models.head import build_head
from frostline.models.model import Card
from frostline.models.pool import Pool


class BodyWithHead(nn.Module):
    """``head(pool(body(**inputs)))``. Without a pool: the body's own pooled output, else its first position."""

    def __init__(self, body: nn.Module, pool: Pool | None, head: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.pool = pool
        self.head = head
        # ConvNeXt's last norm stands behind its own pooling, so it belongs behind ours
        self.norm_is_last = pool is not None and str(body.config.model_type).startswith("convnext")  # type: ignore[union-attr]

    def forward(self, **inputs: Tensor) -> Tensor:
        output = self.body(**inputs)
        if self.pool is None:
            pooled = getattr(output, "pooler_output", None)
            return self.head(output.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1))
        hidden = output.last_hidden_state
        if hidden.dim() == 4:
            hidden = hidden.flatten(2).transpose(1, 2)  # (rows, channels, height, width) → (rows, positions, channels)
        pooled = self.pool(hidden, inputs.get("attention_mask"))
        return self.head(self.body.layernorm(pooled) if self.norm_is_last else pooled)  # type: ignore[operator]


def build_transformers(*, schema: Schema, config: dict[str, Any], head: Sequence[str], pool: str | None, pooler: bool) -> nn.Module:
    """The network that a card describes, with weights as ``transformers`` starts them.

    ``pooler`` False: the body's own pooling layer is left out, because nothing reads it or its weights are not known.
    """
    from transformers import AutoModel, AutoModelForImageClassification, AutoModelForSequenceClassification

    parsed = parse_config(config)
    with quiet():
        if not head and pool is None:
            auto = AutoModelForImageClassification if schema.task == "image-classification" else AutoModelForSequenceClassification
            return auto.from_config(parsed, trust_remote_code=False)
        body = AutoModel.from_config(parsed, trust_remote_code=False)
    if not pooler:
        body.pooler = None
    return attach_head(body, schema, head, pool)


def attach_head(body: nn.Module, schema: Schema, head: Sequence[str], pool: str | None) -> BodyWithHead:
    """A new head (and pool) on an encoder. Raises ModelError where the pool cannot work on it."""
    config: Any = body.config
    width = config.hidden_sizes[-1] if getattr(config, "hidden_sizes", None) else config.hidden_size
    if pool == "cls" and (getattr(config, "hidden_sizes", None) or config.model_type.startswith("swin")):
        raise ModelError(f"model.pool got 'cls', but a {config.model_type!r} has no class token; expected mean, max or attention")
    return BodyWithHead(body, Pool(pool, width) if pool else None, build_head(list(head), width, schema.outputs))


def load_native(card: Card, state: dict[str, Tensor]) -> nn.Module:
    """The architecture's own class with exactly the weights of ``state``, in the names of its checkpoints."""
    config = parse_config(card.arguments["config"])
    module, info = from_state(classification_class(config, card.schema), config, state)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            first = min(key if isinstance(key, str) else key[0] for key in info[kind])
            raise ModelError(
                f"weights of {config.model_type!r}: {kind.replace('_', ' ')}, the first is {first!r}, expected an "
                "exact match. Save the model again"
            )
    return module


def is_native(card: Card) -> bool:
    """Whether the module is the architecture's own classification class, unchanged."""
    return card.name == "transformers" and not card.arguments["head"] and card.arguments["pool"] is None and "adapt" not in card.arguments


def from_state(cls: Any, config: Any, state: dict[str, Tensor]) -> tuple[Any, dict[str, Any]]:
    """``cls`` with the tensors of ``state`` (older names translated), and what was missing, unexpected or of another shape."""
    if isinstance(cls, tuple):
        cls = cls[0]
    try:
        with quiet():
            return cls.from_pretrained(
                None, config=config, state_dict=state, output_loading_info=True, ignore_mismatched_sizes=True, dtype=torch.float32
            )
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"weights do not fit the architecture {config.model_type!r}: {error}. Give the weights that belong to config.json"
        ) from error


def parse_config(values: dict[str, Any]) -> Any:
    """The configuration object of a built-in architecture. Raises ModelError for another one or for values that it refuses."""
    from transformers import CONFIG_MAPPING

    kind = str(values.get("model_type"))
    if kind not in CONFIG_MAPPING:
        raise ModelError(f"model_type got {kind!r}, expected an architecture that transformers itself brings, such as 'bert' or 'vit'")
    if "auto_map" in values:
        raise ModelError(f"configuration names code of its own (auto_map {values['auto_map']!r}), which is never run. Remove auto_map")
    try:
        with quiet():
            return CONFIG_MAPPING[kind].from_dict(dict(values))
    except Exception as error:  # each architecture has checks of its own, with errors of many types
        raise ModelError(f"configuration of {kind!r} is not valid: {error}. Copy config.json again") from error


def claimed_layers(config: dict[str, Any]) -> int:
    """The largest number of layers that a configuration names; building even empty ones takes time and memory.

    >>> claimed_layers({"num_hidden_layers": 12, "depths": [3, 18], "layer_norm_eps": 1e-5})
    18
    """
    counts = [value for name, value in config.items() if re.fullmatch(r"(\w+_)?(layers?|blocks)|depths?", name)]
    return max((int(n) for value in counts for n in (value if isinstance(value, list) else [value]) if isinstance(n, int)), default=0)


def classification_classes(schema: Schema) -> Any:
    """The table from a configuration's class to the class that classifies images or text."""
    from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    return MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING if schema.task == "image-classification" else MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING


def classification_class(config: Any, schema: Schema) -> Any:
    """The class that does the task of ``schema`` with this configuration. Raises ModelError where there is none."""
    classes = classification_classes(schema)
    if type(config) not in classes:
        raise ModelError(f"model_type {config.model_type!r} cannot do {schema.task!r}. Give a model that can, or another data.task")
    return classes[type(config)]


def body_name(module: nn.Module) -> str:
    """The child that is the pretrained body; "" where the module is one itself."""
    name = "body" if isinstance(module, BodyWithHead) else str(getattr(module, "base_model_prefix", ""))
    return name if name and hasattr(module, name) else ""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings, log lines or progress bars of ``transformers``; its settings are as before afterwards."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
