"""The probe measures what the cost model needs and leaves the network as it found it."""

from __future__ import annotations

import gc
import time
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import frostline as fl
from frostline.data.loader import epoch_batches, spread
from frostline.kernels.large_blocks import bytes_needed, use_large_blocks
from frostline.plan import probe as probe_module
from frostline.plan.probe import _positions, _positions_of_row, _repeated, _saved_bytes, probe
from tests.plan.small import bert_with_lora
from tests.train.small import cnn, first_rows, plan


def mean_loss(logits, labels):
    return nn.functional.cross_entropy(logits, labels, reduction="sum"), torch.tensor(float(len(labels)))


def probed(data, tmp_path, model, adapt, batch=16):
    made = plan(model, data, tmp_path / "run", adapt=adapt, cache="on")
    return probe(made.execution, mean_loss, batch), made.execution.line


def test_a_network_that_was_weighed_can_go():
    """Softmax keeps its own output: handed back as it is, it would hold what holds it, and all before that."""

    def weighed():
        module = nn.Sequential(nn.Linear(3, 4), nn.Softmax(1))
        assert _saved_bytes(lambda: module(torch.ones(2, 3)).sum(), module)[0] > 0
        return weakref.ref(module[0].weight)

    weight = weighed()
    gc.collect()
    assert weight() is None


def test_it_leaves_the_network_as_it_was(digits, tmp_path):
    made = plan(cnn(digits), first_rows(digits, 40), tmp_path / "run", adapt="full")
    module = made.model.module
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    torch.manual_seed(7)
    state = torch.get_rng_state()
    probe(made.execution, mean_loss, 16)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())


class Slow(nn.Module):
    """A frozen part that takes 2 ms a row, and a learning part that takes 1 ms a row."""

    def __init__(self):
        super().__init__()
        self.body, self.head = SlowPart(192, 8, 0.002), SlowPart(8, 10, 0.001)

    def forward(self, pixel_values):
        return self.head(self.body(pixel_values.flatten(1)))


class SlowPart(nn.Linear):
    def __init__(self, inputs, outputs, seconds):
        super().__init__(inputs, outputs)
        self.seconds = seconds

    def forward(self, x):
        time.sleep(self.seconds * len(x))
        return super().forward(x)


@pytest.fixture
def one_thread():
    """Two threads that wait for each other take milliseconds more where something else runs on the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_seconds_before_and_after_the_line(digits, tmp_path):
    found, line = probed(digits, tmp_path, fl.load(Slow(), task=digits.task, size=8), "head", batch=10)
    assert line.names == ["body"]
    assert 0.002 <= found.prefix_row < 0.006 and 0.002 <= found.prefix_alone < 0.006
    assert 0.010 <= found.forward < 0.030 and 0.010 <= found.step < 0.030  # without the 20 ms before the line


def test_without_a_line_the_step_is_the_whole_network(digits, tmp_path):
    found, line = probed(digits, tmp_path, fl.load(Slow(), task=digits.task, size=8), "full", batch=10)
    assert line is None and found.prefix_row == 0
    assert found.step >= 0.030


def test_bytes_by_hand(digits, tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(192, 64), nn.Linear(64, 10)

        def forward(self, pixel_values):
            return self.head(self.body(pixel_values.flatten(1)).relu())

    found, _ = probed(digits, tmp_path, fl.load(Two(), task=digits.task, size=8), "full", batch=16)
    assert found.input_bytes == 16 * 192 * 4
    assert found.transient_bytes == 2 * 16 * 64 * 4
    # kept for the backward pass: the flat input, the ReLU's output, the log-probabilities and the labels (and single numbers)
    expected = 16 * (192 + 64 + 10) * 4 + 16 * 8
    assert expected <= found.saved_bytes <= expected + 64


def test_shared_storages_count_once_and_parameters_not_at_all():
    layer, x = nn.Linear(4, 4, bias=False), torch.ones(2, 4, requires_grad=True)
    assert _saved_bytes(lambda: layer(x).sum(), layer) == (x.nbytes, 0)
    assert _saved_bytes(lambda: (x * x).sum(), layer) == (x.nbytes, 0)


def test_casts_of_weights_do_not_grow_with_the_rows():
    layer = nn.Linear(64, 64, bias=False)
    measured = []
    for rows in (1, 8):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            measured.append(_saved_bytes(lambda rows=rows: layer(torch.ones(rows, 64)).float().square().sum(), layer))
    (few, fixed), (many, same) = measured
    assert fixed == same <= 2 * 64 * 64 and 0 < few < many


@pytest.mark.usefixtures("one_thread")
def test_a_batch_behind_the_line_that_takes_long_is_timed_in_part(digits, tmp_path, monkeypatch):
    step, rows = probe_module.forward_and_backward, []

    def counted(execution, loss, batch):
        rows.append(len(batch.labels))
        step(execution, loss, batch)

    monkeypatch.setattr(probe_module, "forward_and_backward", counted)
    whole, _ = probed(digits, tmp_path, fl.load(Slow(), task=digits.task, size=8), "head", batch=24)
    assert rows[-1] == 24
    monkeypatch.setattr(probe_module, "_SECONDS", 0.05)
    part, _ = probed(digits, tmp_path, fl.load(Slow(), task=digits.task, size=8), "head", batch=24)
    assert 2 <= rows[-1] < 24 and 0.024 <= part.step < 0.072
    assert part.saved_bytes == pytest.approx(whole.saved_bytes, rel=0.2)


def test_a_sample_is_repeated_to_a_batch():
    assert _repeated(torch.tensor([1, 2, 3]), 7).tolist() == [1, 2, 3, 1, 2, 3, 1]


def test_what_is_computed_of_a_batch(texts, tmp_path):
    execution = bert_with_lora(texts, tmp_path, pack="on").execution
    source = execution.sources["train"]
    sample = source.encode(spread(source.rows, 5), None)
    batches = epoch_batches(source.rows, 6, 0, 0, source.lengths)
    assert execution.pack and execution.line is None, "packed: tokens alone"
    assert _positions(execution, source, 6).tolist() == [source.lengths[rows].sum() for rows in batches]
    assert _positions_of_row(execution, sample) == source.lengths[sample.rows].sum() / 5
    execution.line = object()  # both parts are measured padded then
    assert _positions(execution, source, 6).tolist() == [len(rows) * source.lengths[rows].max() for rows in batches]
    assert _positions_of_row(execution, sample) == source.lengths[sample.rows].max()


def test_an_epoch_of_batches_of_several_lengths(texts, tmp_path, monkeypatch):
    """In proportion to the tokens nothing is bent; with their square an epoch takes more than its middling batch would have it."""
    model = fl.load("transformer", data=texts, width=16, depth=1)
    made = plan(model, texts, tmp_path / "run", adapt="full", pack="off", batch=8)
    execution, source = made.execution, made.execution.sources["train"]
    positions = probe_module._positions(execution, source, 8)
    for power in (1, 2):
        seen = []

        def seconds(work, budget, once, power=power, seen=seen):
            seen.append(work.args[-1].inputs["attention_mask"].numel())
            return float(seen[-1]) ** power

        monkeypatch.setattr(probe_module, "usual_seconds", seconds)
        monkeypatch.setattr(probe_module, "_SECONDS", 1e12)
        middle = min(positions, key=lambda size: abs(size - positions.mean()))
        bend, _ = probe_module._bend(execution, mean_loss, 8, positions, float(middle) ** power)
        assert middle not in seen and {positions.min(), positions.max()} <= set(seen) and len(seen) <= 3
        exact = (positions.astype(float) ** power).sum() / (positions.sum() * middle ** (power - 1))
        assert bend == pytest.approx(1) if power == 1 else exact <= bend < 1.3 * exact and bend > 1
    monkeypatch.setattr(probe_module, "_SECONDS", 0.0)
    seen.clear()
    bend, _ = probe_module._bend(execution, mean_loss, 8, positions, 1.0)
    assert bend > 0 and not seen, "what is not affordable is not timed"


def test_what_is_before_the_line_is_bent_by_its_own_seconds(texts, tmp_path, monkeypatch):
    """A step behind the line may take the same for any length, where the frozen part takes the square."""
    execution = plan(fl.load("transformer", data=texts, width=16, depth=1), texts, tmp_path / "run", adapt="full", pack="off").execution
    positions = probe_module._positions(execution, execution.sources["train"], 8)
    middle = min(positions, key=lambda size: abs(size - positions.mean()))
    clock, encoded = [0.0], probe_module._at_the_line

    def at_the_line(execution, rows):
        batch = encoded(execution, rows)
        clock[0] += float(batch.inputs["attention_mask"].numel()) ** 2
        return batch

    monkeypatch.setattr(probe_module, "_at_the_line", at_the_line)
    monkeypatch.setattr(probe_module, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(probe_module, "usual_seconds", lambda work, budget, once: 1.0)
    monkeypatch.setattr(probe_module, "_SECONDS", 1e12)
    bend, prefix_bend = probe_module._bend(execution, mean_loss, 8, positions, 1.0, float(middle) ** 2)
    assert bend == pytest.approx(len(positions) * middle / positions.sum())
    exact = (positions.astype(float) ** 2).sum() / (positions.sum() * middle)
    assert exact <= prefix_bend < 1.3 * exact and prefix_bend > 1


def test_a_part_of_a_batch_is_not_taken_for_the_whole(texts, tmp_path, monkeypatch):
    """Where a batch takes too long to be tried, none is run whole."""
    model = fl.load("transformer", data=texts, width=16, depth=1)
    made = plan(model, texts, tmp_path / "run", adapt="full", pack="off", batch=8)
    monkeypatch.setattr(probe_module, "_SECONDS", 1e-9)
    monkeypatch.setattr(probe_module, "_bend", lambda *args: pytest.fail("a whole batch was run"))
    assert probe(made.execution, mean_loss, 8).step > 0


def test_what_is_needed_of_many_rows_lies_on_a_line_through_few_and_more(digits, tmp_path, monkeypatch):
    """A part of it is there for any number of rows, as weights that are laid out anew."""
    seen = []

    def needed(run, device):
        run()
        return 1_000_000 + 50_000 * seen[-1]

    made = plan(cnn(digits), first_rows(digits, 40), tmp_path / "run", adapt="full", batch=16)
    monkeypatch.setattr(probe_module, "bytes_needed", needed)
    three = made.execution.sources["train"].encode(np.arange(3), None)

    def work(batch):
        seen.append(len(batch.labels))
        return made.execution.forward(batch)

    assert probe_module._bytes_needed(work, (probe_module._first(three, 2), three), (2, 3), 16) == 1_000_000 + 16 * 50_000
    assert seen == [2, 2, 3], "once before, for what stays"
    assert probe_module._bytes_needed(work, (three, three), (3, 3), 6) == 2 * 1_150_000
    monkeypatch.setattr(probe_module, "bytes_needed", lambda *_: None)
    assert probe_module._bytes_needed(work, (three, three), (3, 3), 16) is None


@pytest.mark.skipif(use_large_blocks() is not None, reason="tensors come from another allocator")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_peak_of_a_step_is_measured(accumulate, texts, digits, tmp_path):
    """Of the heaviest batch of texts, and of images: what lives at once, with gradients where they were cleared before."""
    for number, (data, model) in enumerate([(texts, fl.load("transformer", data=texts, width=64, depth=2)), (digits, cnn(digits))]):
        execution = plan(model, data, tmp_path / str(number), adapt="full", batch=16).execution
        found = probe(execution, mean_loss, 16, accumulate=accumulate)
        assert found.has_gradients == (accumulate == 1)
        heavy = probe_module.heaviest_rows(execution, 16, 16)
        if accumulate == 2:
            probe_module.forward_and_backward(execution, mean_loss, heavy)
        actual = bytes_needed(lambda: probe_module.forward_and_backward(execution, mean_loss, heavy))  # noqa: B023
        assert found.saved_bytes + found.transient_bytes == pytest.approx(actual, rel=0.05)
        execution.model.module.zero_grad()


def test_of_a_short_run_less_is_timed(digits, tmp_path, monkeypatch):
    made = plan(cnn(digits), first_rows(digits, 40), tmp_path / "run", adapt="full")
    step, steps = probe_module.forward_and_backward, []
    monkeypatch.setattr(
        probe_module, "forward_and_backward", lambda *args, **kwargs: (steps.append(1), step(*args, **kwargs), time.sleep(0.02))
    )
    counts = []
    for whole in (1.0, 1e6):
        steps.clear()
        assert probe(made.execution, mean_loss, 16, whole).step >= 0.02
        counts.append(len(steps))
    assert counts[0] == 5 < counts[1], "few rows twice, more once for their memory, and twice for their time"


def test_the_heaviest_batch_may_have_few_rows(monkeypatch):
    """Of ten texts in batches of eight the two long ones are the last batch: their memory is not counted as that of eight."""
    source = SimpleNamespace(rows=10, lengths=np.array([1, 1, 100, 1, 1, 1, 1, 100, 1, 1]))
    execution = SimpleNamespace(sources={"train": source}, pack=True, line=None)
    heaviest = probe_module._heaviest(execution, 8)
    assert source.lengths[heaviest].sum() == probe_module._positions(execution, source, 8).max() and len(heaviest) == 2
    seen = []
    monkeypatch.setattr(probe_module, "_bytes_needed", lambda work, pair, counts, rows: seen.append((counts, rows)))
    few = SimpleNamespace(rows=heaviest[:1])
    probe_module._step_needs(execution, mean_loss, 8, True, (few, SimpleNamespace(rows=heaviest)))
    assert seen == [([1, 2], 2)]


@pytest.mark.parametrize("pack", ["on", "off"])
def test_what_onednn_keeps_for_each_number_of_rows(pack, texts, tmp_path, monkeypatch):
    """Two that it has not met tell what one takes; none where another multiplies."""
    made = bert_with_lora(texts, tmp_path, pack=pack, precision="bf16", batch=3)
    execution, stepped = made.execution, []
    source = execution.sources["train"]
    assert execution.compiles_by_shape and execution.pack == (pack == "on")
    monkeypatch.setattr(probe_module, "resident_bytes", lambda: 1000 * len(stepped))
    monkeypatch.setattr(probe_module, "taken_bytes", lambda: 0)
    monkeypatch.setattr(probe_module, "_MET", 0)

    def step(batch):
        stepped.append(int(batch.inputs["attention_mask"].sum()) if execution.pack else batch.inputs["attention_mask"].numel())

    sizes = set()
    for epoch in range(2):
        for rows in epoch_batches(source.rows, 3, 0, epoch, source.lengths):
            tokens = int(source.lengths[rows].sum())
            sizes.add(-(-tokens // 32) * 32 if execution.pack else len(rows) * int(source.lengths[rows].max()))
    steps = 2 * source.rows / 3
    assert probe_module._compiled_bytes(execution, step, 3, steps) == 1000 * len(sizes)
    assert len({-(-size // 32) if execution.pack else size for size in stepped}) == len(stepped) == 3, "each another number"
    execution.precision = "fp32"
    assert probe_module._compiled_bytes(execution, step, 3, steps) == 0
