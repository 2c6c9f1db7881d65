"""The modules of ``transformers`` architectures: built from a configuration, and filled from a state dict.

Nothing here reads a folder: huggingface.py brings configuration and weights, save.py and load.py the saved ones. Only
architectures that ``transformers`` itself brings can be named, because a configuration is looked up in its own table.
"""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from frostline.data.dataset import Schema
from frostline.errors import ModelError
from frostline.models.head import build_head
from frostline.models.model import Card
from frostline.models.pool import Pool

NO_LIMIT = 10**9
"""Positions of a network that counts none."""


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
    from transformers import AutoModel

    parsed = parse_config(config)
    with quiet():
        if not head and pool is None:
            return _free_end_token(task_class(parsed, schema)._from_config(parsed))
        body = AutoModel.from_config(parsed, trust_remote_code=False)
    if not pooler:
        body.pooler = None
    return attach_head(body, schema, head, pool)


def attach_head(body: nn.Module, schema: Schema, head: Sequence[str], pool: str | None) -> BodyWithHead:
    """A new head (and pool) on an encoder; none for an embedding, which is the pooled vector. Raises ModelError for an impossible pool."""
    config: Any = body.config
    width = config.hidden_sizes[-1] if getattr(config, "hidden_sizes", None) else config.hidden_size
    if pool == "cls" and (getattr(config, "hidden_sizes", None) or config.model_type.startswith("swin")):
        raise ModelError(f"model.pool got 'cls', but a {config.model_type!r} has no class token; expected mean, max or attention")
    made = nn.Identity() if schema.task == "embedding" else build_head(list(head), width, schema.outputs)
    return BodyWithHead(body, Pool(pool, width) if pool else None, made)


def load_native(card: Card, state: dict[str, Tensor]) -> nn.Module:
    """The architecture's own class with exactly the weights of ``state``, in the names of its checkpoints."""
    config = parse_config(card.arguments["config"])
    module, info = from_state(task_class(config, card.schema), config, state)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            first = min(key if isinstance(key, str) else key[0] for key in info[kind])
            raise ModelError(
                f"weights of {config.model_type!r}: {kind.replace('_', ' ')}, the first is {first!r}, expected an "
                "exact match. Save the model again"
            )
    return module


def is_native(card: Card) -> bool:
    """Whether the module is the architecture's own class for the task, unchanged."""
    own = card.arguments
    return card.name == "transformers" and not own.get("head") and own.get("pool") is None and "adapt" not in own


def from_state(cls: Any, config: Any, state: dict[str, Tensor]) -> tuple[Any, dict[str, Any]]:
    """``cls`` with the tensors of ``state`` (older names translated), and what was missing, unexpected or of another shape."""
    try:
        with quiet():
            module, info = cls.from_pretrained(
                None, config=config, state_dict=state, output_loading_info=True, ignore_mismatched_sizes=True, dtype=torch.float32
            )
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"weights do not fit the architecture {config.model_type!r}: {error}. Give the weights that belong to config.json"
        ) from error
    return _free_end_token(module), info


def _free_end_token(module: Any) -> Any:
    """Where the end token pads too, its embedding still learns: ``padding_idx`` would keep its gradient back."""
    end = getattr(module.config, "eos_token_id", None)
    for part in module.modules():
        if isinstance(part, nn.Embedding) and part.padding_idx is not None and part.padding_idx == end:
            part.padding_idx = None
    return module


def read_generation(module: Any, folder: Path) -> None:
    """Take over the folder's generation_config.json, which then is saved with the model; it steers nothing here. Raises ModelError."""
    from transformers import GenerationConfig

    path = folder / "generation_config.json"
    if not path.is_file() or not getattr(module, "can_generate", lambda: False)():
        return
    try:
        with quiet():
            made = GenerationConfig.from_pretrained(str(folder), local_files_only=True)
            if made.do_sample is not True and (made.temperature, made.top_p) != (None, None):
                made.do_sample = True  # what these two mean; without it the file cannot be saved again
            made.validate(strict=True)
    except Exception as error:  # its values are checked by many hands
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(f"{str(path)!r} is not valid: {reason}. Correct it, or delete the file") from error
    module.generation_config = made


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


def writes(schema: Schema) -> bool:
    """Whether the task's model gives a vocabulary's worth of logits at every position, and so has nothing new in it."""
    return schema.task in ("chat", "causal-lm", "preference", "translation", "summarisation")


def task_class(config: Any, schema: Schema) -> Any:
    """The class that does the task of ``schema`` with this configuration. Raises ModelError where there is none."""
    import transformers

    both = bool(getattr(config, "is_encoder_decoder", False))
    tables = {
        "image-classification": transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
        "token-classification": transformers.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
        "embedding": transformers.MODEL_MAPPING,
        "translation": transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING if both else transformers.MODEL_FOR_CAUSAL_LM_MAPPING,
    }
    tables["summarisation"] = tables["translation"]
    tables |= dict.fromkeys(("chat", "causal-lm", "preference"), transformers.MODEL_FOR_CAUSAL_LM_MAPPING)
    classes = tables.get(schema.task, transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING)
    if type(config) not in classes or (both and schema.task in ("chat", "causal-lm", "preference", "embedding")):
        which = "an encoder-decoder, which " if both else ""
        raise ModelError(f"model_type {config.model_type!r}: {which}cannot do {schema.task!r}. Give a model that can, or another data.task")
    found = classes[type(config)]
    return found[0] if isinstance(found, tuple) else found


def body_name(module: nn.Module) -> str:
    """The child that is the pretrained body; "" where the module is one itself."""
    name = "body" if isinstance(module, BodyWithHead) else str(getattr(module, "base_model_prefix", ""))
    return name if name and hasattr(module, name) else ""


def positions_of(module: nn.Module, *, decoder: bool = False) -> int:
    """How many tokens have a position. ``decoder``: what an encoder-decoder writes, not what it reads.

    RoBERTa and its kind count from behind the padding index, so their table is longer than that by as much.
    """
    config: Any = getattr(module, "config", None)
    if config is None:
        return NO_LIMIT
    for name, part in module.named_modules():
        # BART's tables say so too, but are longer by as much
        if name.endswith("embeddings.position_embeddings") and isinstance(part, nn.Embedding):
            padding: Any = getattr(module.get_submodule(name.rpartition(".")[0]), "padding_idx", part.padding_idx)
            if isinstance(padding, int):
                return part.num_embeddings - padding - 1
    return int(getattr(config.get_text_config(decoder=decoder or None), "max_position_embeddings", None) or NO_LIMIT)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings, log lines or progress bars of ``transformers``, no log lines of the hub's client, which writes one for each time that
    it tries again; settings are as before afterwards."""
    from transformers.utils import logging as of_transformers

    hub = logging.getLogger("huggingface_hub")
    level, level_of_hub, bars = of_transformers.get_verbosity(), hub.level, of_transformers.is_progress_bar_enabled()
    of_transformers.set_verbosity(of_transformers.CRITICAL)
    hub.setLevel(logging.CRITICAL)
    of_transformers.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        of_transformers.set_verbosity(level)
        hub.setLevel(level_of_hub)
        if bars:
            of_transformers.enable_progress_bar()
