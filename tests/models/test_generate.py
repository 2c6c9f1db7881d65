from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from frostline.data.dataset import Schema
from frostline.data.preprocess import TextPreprocess
from frostline.errors import ModelError
from frostline.models.generate import generate
from frostline.models.gpt import gpt_config
from frostline.models.hf_module import build_transformers
from frostline.models.model import Card, Model, logits_of
from frostline.models.seq2seq import build_seq2seq
from frostline.models.tokenizer import train_tokenizer
from tests.models import tiny

KINDS = ["gpt", "gpt2", "transformer", "seq2seq"]
PROMPTS = [[5, 6, 7, 8, 9], [6], [9, 5, 6]]


def _model(kind: str, positions: int = 40) -> Model:
    both = kind in ("transformer", "seq2seq")
    schema = Schema(task="translation" if both else "causal-lm", target="none")
    tokenizer = train_tokenizer(tiny.WORDS, "word", 100, "seq2seq" if both else "causal")
    torch.manual_seed(3)
    if kind == "seq2seq":
        module = build_seq2seq(vocabulary=len(tokenizer), width=16, depth=1, dropout=0.5)
    else:
        config = gpt_config(kind, tokenizer, positions, 32, 2, 0.5)
        module = build_transformers(schema=schema, config=config, head=[], pool=None, pooler=True)
    with torch.no_grad():  # sharper, so that no two tokens are near each other and rounding decides nothing
        for parameter in module.parameters():
            parameter.mul_(3)
    card = Card(name=kind, schema=schema, preprocess=TextPreprocess(tokenizer=tokenizer))
    return Model(module=module, card=card)


def _by_hand(model: Model, prompt: list[int], count: int) -> list[int]:
    """Greedy, the whole row anew for each token."""
    module: Any = model.module.eval()
    both = model.card.schema.task == "translation"
    written = [2] if both else list(prompt)
    for _ in range(count):
        ids = torch.tensor([prompt if both else written])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if both:
            inputs["decoder_input_ids"] = torch.tensor([written])
        with torch.no_grad():
            written.append(int(logits_of(module(**inputs))[0, -1].argmax()))
    return written[1:] if both else written[len(prompt) :]


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_is_what_single_rows_without_a_cache_give(kind: str) -> None:
    model = _model(kind)
    expected = [_by_hand(model, prompt, 6) for prompt in PROMPTS]
    model.module.train()
    assert generate(model, PROMPTS, max_new_tokens=6, stop=[]) == expected
    assert model.module.training
    ids = torch.zeros(3, 5, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(PROMPTS):
        ids[row, : len(prompt)], mask[row, : len(prompt)] = torch.tensor(prompt), 1
    assert generate(model, {"input_ids": ids, "attention_mask": mask}, max_new_tokens=6, stop=[]) == expected
    stop = expected[0][2]
    short = generate(model, PROMPTS, max_new_tokens=6, stop=[stop])
    assert short == [row[: row.index(stop)] if stop in row else row for row in expected]


def _score(model: Model, prompt: list[int], tokens: list[int]) -> float:
    """Log-probability of the tokens."""
    both = model.card.schema.task == "translation"
    ids = torch.tensor([prompt if both else prompt + tokens])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if both:
        inputs["decoder_input_ids"] = torch.tensor([[2, *tokens]])
    with torch.no_grad():
        logs = logits_of(model.module.eval()(**inputs))[0, -len(tokens) - 1 : -1].log_softmax(-1)
    return float(logs[torch.arange(len(tokens)), torch.tensor(tokens)].sum())


@pytest.mark.parametrize("kind", KINDS)
def test_beams_find_nothing_less_likely(kind: str) -> None:
    model = _model(kind)
    greedy, beams = (generate(model, PROMPTS, max_new_tokens=5, stop=[], beams=count) for count in (1, 4))
    for prompt, one, two in zip(PROMPTS, greedy, beams, strict=True):
        assert len(two) == 5
        assert _score(model, prompt, two) >= _score(model, prompt, one) - 1e-4
    alone = [generate(model, [prompt], max_new_tokens=5, stop=[], beams=4)[0] for prompt in PROMPTS]
    assert alone == beams


@pytest.mark.parametrize("kind", KINDS)
def test_sampling_follows_the_seed(kind: str) -> None:
    model = _model(kind)
    state = torch.get_rng_state()
    first, again, other = (generate(model, PROMPTS, max_new_tokens=8, stop=[], temperature=5.0, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert torch.equal(state, torch.get_rng_state())


def test_settings_of_a_folder_change_nothing_and_stay() -> None:
    model = _model("gpt")
    expected = generate(model, PROMPTS, max_new_tokens=6, stop=[])
    own: Any = model.module.generation_config
    own.update(do_sample=True, temperature=9.0, repetition_penalty=5.0, max_new_tokens=1, num_beams=3)
    assert generate(model, PROMPTS, max_new_tokens=6, stop=[]) == expected
    assert model.module.generation_config is own


def test_what_is_put_around_a_layer_takes_part() -> None:
    class Around(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) + x.flip(-1)

    model = _model("gpt")
    layer: Any = model.module.get_submodule("model.layers.0.self_attn")
    layer.o_proj = Around(layer.o_proj)
    assert generate(model, PROMPTS, max_new_tokens=6, stop=[]) == [_by_hand(model, prompt, 6) for prompt in PROMPTS]


def test_no_room() -> None:
    model = _model("gpt2", positions=8)
    assert [len(row) for row in generate(model, PROMPTS, max_new_tokens=6, stop=[])] == [3, 6, 5]
    with pytest.raises(ModelError, match=r"row 0 got a prompt of 8 tokens, expected fewer than the 8 positions"):
        generate(model, [[5] * 8], max_new_tokens=1, stop=[])


def test_bad_arguments() -> None:
    model = _model("seq2seq")
    with pytest.raises(ModelError, match=r"max_new_tokens got 0, expected a number from 1 on"):
        generate(model, PROMPTS, max_new_tokens=0, stop=[])
    with pytest.raises(ModelError, match=r"beams got 2 with temperature 1.0, expected one of them"):
        generate(model, PROMPTS, max_new_tokens=1, stop=[], beams=2, temperature=1.0)
    with pytest.raises(ModelError, match=r"the model is a 'Linear', expected a language model"):
        generate(Model(module=nn.Linear(1, 1), card=model.card), PROMPTS, max_new_tokens=1, stop=[])
    with pytest.raises(ModelError, match=r"row 1 got \[\], expected at least one token"):
        generate(model, [[5], []], max_new_tokens=1, stop=[])


@pytest.mark.parametrize("method", ["prompt", "prefix"])
@pytest.mark.parametrize("kind", ["gpt2", "transformer"])
def test_an_adapters_virtual_tokens_take_room(kind: str, method: str) -> None:
    from frostline.adapt.apply import adapt

    model = _model(kind, positions=12)
    model.card.preprocess = TextPreprocess(tokenizer=model.card.preprocess.tokenizer, max_length=6)
    adapt(model, method, tokens=4)
    if kind == "gpt2":
        assert [len(row) for row in generate(model, [[5] * 5, [6]], max_new_tokens=20, stop=[])] == [3, 7]
        with pytest.raises(ModelError, match=r"row 0 got a prompt of 8 tokens, expected fewer than the 8 positions"):
            generate(model, [[5] * 8], max_new_tokens=20, stop=[])
        return
    longest = 8 if method == "prompt" else 12  # in an encoder-decoder prompts stand before what is read, prefixes before what is written
    room = 12 if method == "prompt" else 8
    assert [len(row) for row in generate(model, [[5] * longest], max_new_tokens=20, stop=[])] == [room]
    with pytest.raises(ModelError, match=rf"row 0 got a prompt of {longest + 1} tokens"):
        generate(model, [[5] * (longest + 1)], max_new_tokens=20, stop=[])
