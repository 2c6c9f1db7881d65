"""The reference is the model as it was: one copy of the weights, computed once, proved, and never made of trained weights."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import frostline as fl
from frostline import api
from frostline.adapt.adapters import adapters_off
from frostline.data.loader import epoch_batches
from frostline.errors import ModelError, RecipeError, RunError
from frostline.models.model import evaluating
from frostline.plan.passes import reference
from frostline.plan.passes.reference import base_hash, can_be_recomputed, fill_reference, prove_reference, reference_of
from frostline.plan.store import stores_folder
from frostline.tasks.preference import answers
from frostline.train import record
from tests import small
from tests.train.small import plan, stopped_and_resumed

ROWS = [{"prompt": f"问题 {i}?", "chosen": f"好的 {i}" + " yes" * (i % 3), "rejected": f"no {i}" + " bad" * (i % 4)} for i in range(24)]
TEXTS = [text for row in ROWS for text in row.values()] + ["user", "assistant"]


@pytest.fixture
def unsaved(monkeypatch):
    """A network from a test has no builder that could read it again."""
    monkeypatch.setattr(record, "save_model", lambda *args, **options: None)


@pytest.fixture(scope="module")
def data():
    made = fl.prepare(ROWS, val=0.25, test_share=0, seed=1)
    return dataclasses.replace(made, recipe={**made.recipe, "workers": 0})


def model(data, **options):
    return small.llama(data.schema, TEXTS, **options)


def planned(data, folder, made=None, **options):
    return plan(made or model(data), data, folder, **{"adapt": "lora", "batch": 8, "pack": "off", **options})


def filled(data, folder, **options):
    made = planned(data, folder, **options)
    return made, fill_reference(made.recipe, made.execution)


def stores():
    return sorted(stores_folder().glob("*")) if stores_folder().exists() else []


def first_batch(made, epoch=0):
    source = made.execution.sources["train"]
    return source.encode(epoch_batches(source.rows, 8, 0, epoch, source.lengths)[0], epoch)


class TestTheNumbers:
    def test_dpo_begins_at_ln_2(self, data, tmp_path):
        made, ran = filled(data, tmp_path / "run")
        assert ran == 24
        made.model.module.train()
        total, count = made.loss(made.execution.forward(batch := first_batch(made)), batch.labels)
        assert abs(total.item() / count.item() - math.log(2)) < 1e-6 and batch.reference.dtype == torch.float64

    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    def test_the_stored_numbers_are_those_of_the_base(self, data, tmp_path, precision):
        made, _ = filled(data, tmp_path / "run", precision=precision)
        with torch.no_grad():
            for wrapper in (part for part in made.model.module.modules() if hasattr(part, "lora_B")):
                wrapper.lora_B.normal_(generator=torch.Generator().manual_seed(0))
        for source in made.execution.sources.values():
            batch = source.encode(np.arange(source.rows), None)
            with torch.no_grad(), adapters_off(made.model.module), evaluating(made.model.module):
                fresh = answers(made.execution.forward(batch)).logp
            torch.testing.assert_close(batch.reference, fresh, rtol=1e-5 if precision == "fp32" else 3e-2, atol=1e-4)
        assert (answers(made.execution.forward(batch)).logp - fresh).abs().max() > 0.1  # with the adapter on it is another model
        if precision == "fp32":
            with evaluating(made.model.module):
                torch.testing.assert_close(reference_of(made.task, made.model, batch), fresh, rtol=1e-5, atol=1e-4)

    def test_one_copy_of_the_weights(self, data, tmp_path):
        made = planned(data, tmp_path / "run")
        module = made.model.module
        before = {id(part) for part in module.modules()}, {p.data_ptr() for p in module.parameters()}
        fill_reference(made.recipe, made.execution)
        assert before == ({id(part) for part in module.modules()}, {p.data_ptr() for p in module.parameters()})
        held = [value for value in vars(made.execution).values() if isinstance(value, nn.Module)]
        assert held == [] and sum(tensor.values.numel() for tensor in made.execution.references.values()) == 2 * 24

    def test_until_they_are_known_no_loss_can_be_had(self, data, tmp_path):
        made = planned(data, tmp_path / "run")
        assert first_batch(made).reference.isnan().all()

    def test_the_reference_of_one_batch_leaves_the_model_as_it_was(self, data, tmp_path):
        made, _ = filled(data, tmp_path / "run")
        learning = [p.requires_grad for p in made.model.module.parameters()]
        assert reference_of(made.task, made.model, batch := first_batch(made)).shape == batch.reference.shape
        assert [p.requires_grad for p in made.model.module.parameters()] == learning
        assert not any(getattr(part, "off", False) for part in made.model.module.modules())
        assert reference_of(made.task, model(data), batch) is None

    def test_what_learns_beside_an_adapter_makes_the_reference_the_model_at_its_start(self, data, tmp_path):
        made, ran = filled(data, tmp_path / "run", made=fl.adapt(model(data), "lora", modules_to_save=["model.norm"]))
        assert ran == 24 and not can_be_recomputed(made.model.module)
        total, count = made.loss(made.execution.forward(batch := first_batch(made)), batch.labels)
        assert abs(total.item() / count.item() - math.log(2)) < 1e-6

    def test_packed_rows_have_the_same_reference(self, data, tmp_path):
        made, _ = filled(data, tmp_path / "a", pack="on")
        other, ran = filled(data, tmp_path / "b", pack="off", cache="off")
        assert made.execution.pack and not other.execution.pack and ran == 0  # the store is the same
        _run_again(other)
        for split, held in made.execution.references.items():
            torch.testing.assert_close(held.values, other.execution.references[split].values, rtol=1e-5, atol=1e-4)

    @pytest.mark.parametrize("loss", ["orpo", "simpo"])
    def test_losses_without_a_reference_compute_none(self, data, tmp_path, loss):
        made, ran = filled(data, tmp_path / "run", loss=loss)
        assert (ran, made.execution.references, made.decision("reference"), stores()) == (0, {}, False, [])
        assert first_batch(made).reference is None

    def test_the_plan_says_what_it_takes_and_saves(self, data, tmp_path):
        made = planned(data, tmp_path / "run", epochs=5)
        (found,) = [one for one in made.decisions if one.what == "reference"]
        assert found.on and "24 rows are scored once by the model with its adapter off" in found.why
        took = made.predicted.parts["reference"]
        assert found.saves_seconds == pytest.approx(4 * took) and "s before training, 0.0 MB on disk" in found.costs
        assert "each row is more than one row of the network's" in next(one.why for one in made.decisions if one.what == "cache_prefix")
        whole = planned(data, tmp_path, adapt="full")
        assert "before its first step" in next(one.why for one in whole.decisions if one.what == "reference")


class TestTheStore:
    def test_the_same_again_runs_nothing_and_another_adapter_neither(self, data, tmp_path):
        assert filled(data, tmp_path / "a")[1] == 24
        assert filled(data, tmp_path / "b")[1] == 0
        assert filled(data, tmp_path / "c", made=fl.adapt(model(data), "lora", rank=2, targets=["q_proj"]), adapt="lora")[1] == 0

    def test_another_weight_row_or_template_is_another_store(self, data, tmp_path):
        def changed(change):
            made = model(data)
            change(made)
            return filled(data, tmp_path / "x", made=made)[1]

        def weight(made):
            with torch.no_grad():
                made.module.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-6

        def template(made):
            made.card.preprocess.tokenizer.chat_template = made.card.preprocess.tokenizer.chat_template.replace("\\n", " ", 1)

        assert [changed(lambda made: None), changed(weight), changed(template), changed(lambda made: None)] == [24, 24, 24, 0]

    def test_nothing_is_written_where_the_recipe_says_so(self, data, tmp_path):
        assert filled(data, tmp_path / "a", cache="off")[1] == 24 and stores() == []

    def test_a_damaged_row_is_found_and_computed_anew(self, data, tmp_path):
        made, _ = filled(data, tmp_path / "a")
        wanted = made.execution.references["train"].values.clone()
        file = made.execution.references["train"].store.folder / "border0.bin"
        content = bytearray(file.read_bytes())
        content[5 * 16] ^= 1
        file.write_bytes(content)
        again = planned(data, tmp_path / "b")
        said = []
        again.execution.say = said.append
        assert fill_reference(again.recipe, again.execution) == 18
        assert torch.equal(again.execution.references["train"].values, wanted)
        assert len(said) == 1 and "(train) failed their proof: row 5" in said[0]

    def test_whole_but_wrong_numbers_are_found_when_they_are_taken(self, data, tmp_path):
        made, _ = filled(data, tmp_path / "a")
        store = made.execution.references["train"].store
        store.write(torch.arange(18), [store.arrays[0] + 0.5])
        again = planned(data, tmp_path / "b")
        said = []
        again.execution.say = said.append
        assert fill_reference(again.recipe, again.execution) == 18 and "recomputed differs by 5.0" in said[0]

    def test_they_are_proved_in_every_epoch(self, data, tmp_path):
        made, _ = filled(data, tmp_path / "a")
        held = made.execution.references["train"]
        wanted, folder, said = held.values.clone(), held.store.folder, []
        made.execution.say = said.append
        assert prove_reference(made.recipe, made.execution, "train", 0) and not said
        held.values[0] += 1.0
        assert not all(prove_reference(made.recipe, made.execution, "train", epoch) for epoch in range(20))
        torch.testing.assert_close(held.values, wanted, rtol=1e-5, atol=1e-5)
        assert len(said) == 1 and not folder.exists()

    def test_an_interrupted_computation_goes_on(self, data, tmp_path):
        made, seen = planned(data, tmp_path / "a"), []

        def stop():
            seen.append(1)
            if len(seen) == 2:
                raise KeyError

        with pytest.raises(KeyError):
            fill_reference(made.recipe, made.execution, between=stop)
        assert [folder.suffix for folder in stores()] == [".part"]
        computed = []
        again = planned(data, tmp_path / "b")
        plain = again.execution.sources["train"].encode
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reference, "_log_probabilities", _counting(reference._log_probabilities, computed))
            fill_reference(again.recipe, again.execution)
        assert computed[0] == 2 and not plain(np.arange(18), None).reference.isnan().any()  # the rows of the third batch

    def test_the_hash_is_of_the_base_alone(self, data):
        plain, adapted = model(data), fl.adapt(model(data), "lora", rank=4)
        wanted = base_hash(plain.module)
        assert base_hash(adapted.module) == wanted
        with torch.no_grad():
            adapted.module.model.layers[0].mlp.up_proj.lora_B.add_(1)
        assert base_hash(adapted.module) == wanted
        with torch.no_grad():
            adapted.module.model.layers[0].mlp.up_proj.base.weight[0, 0] += 1
        assert base_hash(adapted.module) != wanted
        for parameter in plain.module.parameters():
            parameter.requires_grad_(True)
        assert can_be_recomputed(adapted.module) and not can_be_recomputed(plain.module)


def _run_again(made):
    for split in made.execution.references:
        reference._run(made.recipe, made.execution, split, None, True, lambda: None)


def _counting(function, counts):
    def counted(execution, batch):
        counts.append(len(batch.rows))
        return function(execution, batch)

    return counted


@pytest.mark.usefixtures("unsaved")
class TestRuns:
    @pytest.mark.parametrize("loss", ["dpo", "ipo", "orpo", "simpo", "kto"])
    def test_training_prefers_the_chosen_answers(self, data, tmp_path, loss):
        made = planned(data, tmp_path / "run", loss=loss, epochs=5, lr=0.02)
        run = fl.train(made, quiet=True)
        first, *_, last = run.history
        assert last["accuracy"] > 0.9 and last["loss"] < first["loss"]
        assert {"val_loss", "val_accuracy", "val_margin", "val_chosen_reward", "val_rejected_reward"} <= set(last)
        assert last["val_margin"] > first["val_margin"] and last["val_accuracy"] > 0.9
        assert (run.folder / "reference.json").exists() == (loss in ("dpo", "ipo", "kto"))

    def test_the_first_validation_loss_follows_the_formula(self, data, tmp_path):
        run = fl.train(planned(data, tmp_path / "run", epochs=1, lr=1e-12), quiet=True)
        assert run.history[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
        assert run.history[0]["val_loss"] == pytest.approx(math.log(2), abs=1e-6)

    def test_judged_answers_are_learned_by_kto_and_refused_by_the_others(self, tmp_path):
        rows = [{"prompt": row["prompt"], "completion": row["chosen"], "label": True} for row in ROWS]
        rows += [{"prompt": row["prompt"], "completion": row["rejected"], "label": False} for row in ROWS]
        judged = fl.prepare(rows, task="preference", val=0.25, test_share=0, workers=0)
        with pytest.raises(RecipeError, match=r"train\.loss got 'dpo', which learns from pairs, but 48 of 48 rows"):
            planned(judged, tmp_path / "run")
        run = fl.train(planned(judged, tmp_path / "run", loss="kto", epochs=4, lr=0.02), quiet=True)
        assert run.history[-1]["val_accuracy"] > 0.9 and run.history[-1]["val_margin"] > 0

    @pytest.mark.parametrize("loss", ["dpo", "ipo", "orpo", "simpo"])
    def test_law_1_accumulating_is_one_large_batch(self, data, tmp_path, loss):
        gradients = []
        for batch in (8, 2, 3):
            made = planned(data, tmp_path / f"{batch}", model(data), loss=loss)
            made.model.module.double()
            fill_reference(made.recipe, made.execution)
            source, count = made.execution.sources["train"], 0
            for rows in np.array_split(np.arange(8), range(batch, 8, batch)):
                part = source.encode(rows, 0)
                total, pairs = made.loss(made.execution.forward(part), part.labels)
                total.backward()
                count += int(pairs)
            gradients.append([p.grad / count for p in made.model.module.parameters() if p.grad is not None])
        for other in gradients[1:]:
            for a, b in zip(gradients[0], other, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-10)

    @pytest.mark.parametrize("adapt", ["lora", "full"])
    def test_a_stopped_run_goes_on_to_the_same_weights(self, data, tmp_path, adapt, monkeypatch):
        straight, broken = model(data), model(data)
        fl.train(planned(data, tmp_path / "a", straight, adapt=adapt, epochs=2), quiet=True)
        made = planned(data, tmp_path / "b", broken, adapt=adapt, epochs=2)
        fresh = model(data)
        monkeypatch.setattr(api, "resume", lambda folder, quiet: RESUME(folder, model=fresh, quiet=quiet))
        stopped_and_resumed(made, 4, monkeypatch)
        for name, tensor in straight.module.state_dict().items():
            assert torch.equal(tensor, fresh.module.state_dict()[name]), name

    def test_trained_weights_are_never_a_reference(self, data, tmp_path, monkeypatch):
        made = planned(data, tmp_path / "run", adapt="full", epochs=2)

        def resume(folder, quiet):
            return RESUME(folder, model=made.model, quiet=quiet)  # the trained one, as a careless user might hand it over

        monkeypatch.setattr(api, "resume", resume)
        run = stopped_and_resumed(made, 4, monkeypatch)  # what was stored is taken
        assert len(run.history) == 2
        (tmp_path / "run" / "cost.json").unlink()
        for folder in stores():
            (folder / "manifest.json").unlink()
        with pytest.raises(RunError, match="the weights of the model are not those that the run began with, and what those gave"):
            RESUME(str(run.folder), model=made.model, quiet=True)

    def test_an_adapter_that_is_trained_already_is_told(self, data, tmp_path):
        made, said = planned(data, tmp_path / "run"), []
        made.execution.say = said.append
        fill_reference(made.recipe, made.execution)
        assert not said
        with torch.no_grad():
            made.model.module.model.layers[0].mlp.up_proj.lora_B.add_(0.1)
        fill_reference(made.recipe, made.execution)
        assert "The adapter changes the model before the first step" in said[0] and "merge_into_base(model)" in said[0]

    @pytest.mark.parametrize("note", [{"keys": 1}, {"weights": "x", "keys": {"train": "../../elsewhere"}}])
    def test_a_note_that_cannot_be_read_is_told(self, data, tmp_path, note):
        made = planned(data, tmp_path / "run")
        (tmp_path / "reference.json").write_text(json.dumps(note))
        with pytest.raises(RunError, match=r"reference.json' cannot be read"):
            fill_reference(made.recipe, made.execution, tmp_path)

    def test_the_rate_finder_knows_the_reference(self, data, tmp_path):
        from frostline.train.find_lr import find_lr

        found = find_lr(planned(data, tmp_path / "run"), steps=20)
        assert found.losses[0] == pytest.approx(math.log(2), abs=1e-4)

    def test_a_network_without_a_vocabulary_is_refused(self, data):
        with pytest.raises(ModelError, match="'gru'"):
            fl.load("gru", data=data)


class TestReports:
    @pytest.mark.parametrize("adapt", ["lora", "full"])
    def test_a_report_compares_as_validation_did_where_there_is_an_adapter(self, tmp_path, adapt):
        pairs = fl.prepare(ROWS, val=0.25, test_share=0, seed=1, workers=0)
        made = fl.load("gpt", data=pairs, width=16, depth=1, vocabulary=300)
        run = fl.train(plan(made, pairs, tmp_path / "run", adapt=adapt, batch=8, epochs=2, lr=0.02, best_by="margin"), quiet=True)
        best = next(epoch for epoch in reversed(run.history) if epoch.get("best"))
        found = fl.evaluate(run, "validation").metrics
        wanted = {name: best[f"val_{name}"] for name in ("accuracy", "margin", "chosen_reward", "rejected_reward")}
        if adapt == "lora":
            assert found == pytest.approx(wanted, rel=1e-3, abs=1e-3)
        else:  # the reference is gone: rewards are mean log-probabilities
            assert found.keys() == wanted.keys() and found["chosen_reward"] < 0

    def test_metrics_that_may_choose(self, data, tmp_path):
        with pytest.raises(
            RecipeError, match=r"train\.best_by got 'r2', expected one of loss, accuracy, margin\. Use: train\.best_by=loss"
        ):
            planned(data, tmp_path / "run", best_by="r2")


@pytest.mark.usefixtures("unsaved")
class TestReward:
    def test_a_reward_is_learned_and_predicted(self, tmp_path):
        pairs = fl.prepare(ROWS, task="reward", val=0.25, test_share=0, seed=1, workers=0)
        made = plan(small.llama(pairs.schema, TEXTS), pairs, tmp_path / "run", adapt="full", batch=8, epochs=6, lr=0.01)
        assert not made.execution.references
        run = fl.train(made, quiet=True)
        first, *_, last = run.history
        assert last["accuracy"] > 0.9 and last["val_accuracy"] > 0.9 and last["loss"] < first["loss"] and last["val_margin"] > 0
        chat = json.dumps([{"role": "user", "content": "问题 3?"}, {"role": "assistant", "content": "好的 3"}], ensure_ascii=False)
        good, bad = fl.predict(made.model, [chat, chat.replace("好的", "no bad")])
        assert good["reward"] > bad["reward"] and good["input"] == chat


RESUME = api.resume
