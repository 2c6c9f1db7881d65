"""The last step of a language model: the layer from a token's vector to the vocabulary, and whether it is all there is to it.

Losses and metrics make logits only where a label is, with ``logits = output(body(**inputs))`` (law 6). Some architectures do
more than that behind the body: they scale (T5 with tied weights, Cohere, Granite), cap (Gemma 2: c · tanh(x / c)), or add a
bias that is no part of the layer (Marian). So the equation is not believed but tried, on two short rows of different length;
where it does not hold bit for bit, both names stay empty, and the whole module is called.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from frostline.errors import ModelError
from frostline.models.model import evaluating, logits_of, with_own

_ROWS = ([3, 4, 2, 1], [4, 3, 0, 0])
_BEHIND = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Settings that change logits so little near zero that a trial with fresh weights could miss it."""


def body_and_output(module: nn.Module) -> tuple[str, str]:
    """Names of the base model and of the output layer, or two empty ones where the logits are not simply one of the other."""
    names = {id(part): name for name, part in module.named_modules()}
    own: Any = getattr(module, "get_output_embeddings", None)
    output = getattr(module, "lm_head", None) if own is None else own()
    body = str(getattr(module, "base_model_prefix", "model"))
    if not isinstance(output, nn.Linear) or id(output) not in names or not isinstance(getattr(module, body, None), nn.Module):
        return "", ""
    config = getattr(module, "config", None)
    if any(getattr(config, name, None) not in (None, 1, 1.0, False) for name in _BEHIND):
        return "", ""
    inputs = trial_inputs(module)
    with torch.no_grad(), evaluating(module):
        whole = logits_of(module(**inputs))
        hidden = hidden_of(module.get_submodule(body)(**inputs))
        apart = output(hidden)
        try:
            with passed_through(module, output):
                without = logits_of(module(**inputs))
        except RuntimeError:  # what stands behind the layer does not fit the width
            return "", ""
    same = torch.equal(whole, apart) and without.shape == hidden.shape and torch.equal(without, hidden)
    return (body, names[id(output)]) if same else ("", "")


@contextlib.contextmanager
def passed_through(module: nn.Module, layer: nn.Module) -> Iterator[None]:
    """Within, the output layer gives its input, and the module with it.

    A bias of zeros that BART and its kind add behind the layer is as wide as the vocabulary, and made one zero meanwhile.
    """
    bias: Any = getattr(module, "final_logits_bias", None)
    if bias is not None and not bias.any():
        module.final_logits_bias = bias.new_zeros(1)
    try:
        with with_own(layer, "forward", lambda hidden: hidden):
            yield
    finally:
        if bias is not None:
            module.final_logits_bias = bias


def hidden_of(output: Any) -> Tensor:
    """A body's output as (rows, tokens, width): its ``last_hidden_state``, its first item, or the tensor itself."""
    if isinstance(output, Tensor):
        return output
    hidden = getattr(output, "last_hidden_state", None)
    return output[0] if hidden is None else hidden


def trial_inputs(module: nn.Module) -> dict[str, Tensor]:
    """Two rows of 4 and 2 tokens, for an encoder-decoder with a target of their own."""
    ids = torch.tensor(_ROWS)
    inputs = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    if writes_from_source(module):
        inputs.update(decoder_input_ids=ids[:, :3].clone(), decoder_attention_mask=inputs["attention_mask"][:, :3])
    return inputs


def writes_from_source(module: nn.Module) -> bool:
    """Whether the module is an encoder-decoder."""
    config = getattr(module, "config", None)
    return hasattr(getattr(module, "model", None), "encode") if config is None else bool(getattr(config, "is_encoder_decoder", False))


def decoder_start(module: nn.Module, tokenizer: Any) -> int:
    """The id that an encoder-decoder's target begins with. Raises ModelError where nothing says it."""
    config = getattr(module, "config", None)
    names = ("decoder_start_token_id", "bos_token_id", "pad_token_id")
    found = [getattr(config, name, None) for name in names[: 3 if config is not None else 0]] or [tokenizer.bos_token_id]
    start = next((token for token in found if token is not None), None)
    if start is None:
        raise ModelError(
            f"the model {type(module).__name__!r} has decoder_start_token_id None, expected the token that a target begins with. "
            "Set decoder_start_token_id in its config.json"
        )
    return int(start)


def check_causal(module: nn.Module, what: str) -> None:
    """Raises ModelError where a token's logits depend on a later one: an encoder without its mask learns to copy, not to write."""
    inputs = trial_inputs(module)
    changed = {**inputs, "input_ids": inputs["input_ids"].clone()}
    changed["input_ids"][0, 3] = 3
    with torch.no_grad(), evaluating(module):
        first, second = (logits_of(module(**given))[0, :3] for given in (inputs, changed))
    if not torch.allclose(first, second, rtol=1e-4, atol=1e-6):
        raise ModelError(
            f"model {what!r}: a {type(module).__name__} sees the tokens that it is to predict, expected a causal language model "
            "(gpt2, llama, qwen …). For an encoder set data.task=text-classification, token-classification or embedding"
        )
