"""One place decides whether the prefix is run or read; both give the same logits, in every order of rows."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

import frostline as fl
from frostline.data.loader import epoch_batches
from frostline.kernels.packed_product import PackedProduct
from frostline.plan.passes.cache_prefix import fill_stores
from tests.plan.small import llama_with_lora
from tests.train.small import cnn, first_rows, plan


@pytest.fixture(params=["images", "texts"])
def cached(request, tmp_path):
    """The execution of a plan whose stores are filled."""
    if request.param == "images":
        data = first_rows(request.getfixturevalue("digits"), 40)
        model = cnn(data)
    else:
        data = first_rows(request.getfixturevalue("texts"), 40)
        model = fl.load("transformer", data=data, width=16, depth=2)
    made = plan(model, data, tmp_path / "run", adapt="head", cache="on")
    assert fill_stores(made.recipe, made.execution, quiet=True) > 0
    made.model.module.eval()
    return made.execution


def test_from_the_store_as_from_the_network(cached):
    source, encode = cached.sources["train"], cached.encoder("train")
    for rows in epoch_batches(source.rows, 7, 0, 0, source.lengths):
        plain, stored = source.encode(rows, None), encode(rows, 0)
        assert plain.border is None and stored.border is not None
        assert torch.equal(plain.labels, stored.labels) and torch.equal(plain.rows, stored.rows)
        assert {n: v.shape for n, v in plain.inputs.items()} == {n: v.shape for n, v in stored.inputs.items()}
        with torch.no_grad():
            torch.testing.assert_close(cached.forward(stored), cached.forward(plain), rtol=1e-5, atol=1e-6)


def test_behind_the_line_only_its_own_products_are_in_place(tmp_path, texts):
    """A row that was stored passes no other layer."""
    data = first_rows(texts, 40)
    made = plan(fl.load("transformer", data=data, width=16, depth=3, dropout=0.0), data, tmp_path / "run", adapt="last 1", cache="on")
    execution, module, frozen = made.execution, made.model.module, ["blocks.0.qkv", "blocks.1.mlp.2"]
    assert fill_stores(made.recipe, execution, quiet=True) > 0
    for name in (*frozen, "head.0"):
        execution.products[name] = PackedProduct(module.get_submodule(name).weight, dtype=torch.float32, rows=4)
    assert all(execution.line.touches(name) for name in frozen) and not execution.line.touches("head.0")
    module.requires_grad_(False).eval()
    rows = np.array([0, 5, 7])
    plain, stored = execution.sources["train"].encode(rows, None), execution.encoder("train")(rows, 0)
    for batch, there in ((None, [*frozen, "head.0"]), (plain, [*frozen, "head.0"]), (stored, ["head.0"])):
        with execution.kernels(batch):
            assert {name for name in execution.products if "forward" in vars(module.get_submodule(name))} == set(there)
    with torch.no_grad():
        torch.testing.assert_close(execution.forward(stored), execution.forward(plain), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cached", ["images"], indirect=True)
def test_images_are_not_read_again(cached, monkeypatch):
    encode = cached.encoder("train")
    monkeypatch.setattr(cached.sources["train"], "encode", lambda *args: pytest.fail("an image was decoded"))
    pixels = encode(np.array([3, 1]), 0).inputs["pixel_values"]
    assert pixels.untyped_storage().nbytes() == 4 and not pixels.any()  # one number, expanded


def test_the_proof_recomputes_other_rows_in_each_epoch(cached):
    assert cached.prove("train") and cached.prove("validation") and cached.prove("test")
    seen = []
    encode = cached.sources["train"].encode
    cached.sources["train"].encode = lambda rows, epoch: seen.append(rows.tolist()) or encode(rows, epoch)
    assert cached.prove("train", rows=3, epoch=1)
    assert len(seen) == 3 and len({row for rows in seen for row in rows}) == 3  # each alone
    assert all(cached.prove("train", epoch=epoch) for epoch in range(8))
    assert len({row for rows in seen[3:] for row in rows}) > 3


def test_weights_that_changed_since_do_not_pass(cached):
    parameter = next(p for p in cached.model.module.parameters() if not p.requires_grad)
    said = []
    cached.say = said.append
    with torch.no_grad():
        parameter += 0.1
    assert not cached.prove("train") and "train" not in cached.stores and "validation" in cached.stores
    assert len(said) == 1 and "(train) failed their proof" in said[0] and "the prefix runs from here on" in said[0]
    assert cached.encoder("train")(np.arange(2), 0).border is None


def test_a_store_dropped_while_threads_read_it(cached):
    """A row that is damaged is met by one worker; the others, in the middle of a batch, must not fall over."""
    store, encode = cached.stores["train"], cached.encoder("train")
    store.discard()
    assert len(store.read(torch.tensor([1, 2]), width=20)) == 1
    store.arrays[0].view(-1)[0] += 1
    batch = encode(np.arange(3), 0)
    assert batch.border is None and "train" not in cached.stores
    assert encode(np.arange(3), 0).border is None


def test_logits_are_float32_in_bf16_too(digits, tmp_path):
    made = plan(cnn(digits), first_rows(digits, 20), tmp_path / "run", cache="off")
    batch = made.execution.sources["train"].encode(np.arange(4), None)
    made.model.module.eval()
    plain = made.execution.forward(batch)
    made.execution.precision = "bf16"
    narrow = made.execution.forward(batch)
    assert plain.dtype == narrow.dtype == torch.float32 and not torch.equal(plain, narrow)
    torch.testing.assert_close(plain, narrow, rtol=0.05, atol=0.05)


def test_channels_last_gives_the_network_its_images_so(digits, tmp_path):
    made = plan(fl.load("vgg11", data=digits, size=32), first_rows(digits, 20), tmp_path / "run", channels_last="on")
    seen = []
    made.model.module.features.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    batch = made.execution.sources["train"].encode(np.arange(4), None)
    made.model.module.eval()
    with torch.no_grad():
        inner = made.execution.forward(batch)
        made.execution.channels_last = False
        plain = made.execution.forward(batch)
    assert [tensor.is_contiguous() for tensor in seen] == [False, True]
    torch.testing.assert_close(inner, plain, rtol=1e-5, atol=1e-6)


def test_what_is_exchanged_for_the_process_is_given_back_by_threads_that_train_at_once(tmp_path):
    from transformers.models.llama import modeling_llama

    plain = modeling_llama.apply_rotary_pos_emb, torch.nn.functional.scaled_dot_product_attention
    executions = [llama_with_lora(tmp_path / str(number), precision="bf16", fuse_blocks="on").execution for number in range(2)]

    def work(execution):
        batch = execution.sources["train"].encode(np.arange(4), None)
        for _ in range(20):
            execution.backward(execution.forward(batch).nll.sum())

    threads = [threading.Thread(target=work, args=(execution,)) for execution in executions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (modeling_llama.apply_rotary_pos_emb, torch.nn.functional.scaled_dot_product_attention) == plain
