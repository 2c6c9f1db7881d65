from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from frostline.adapt.groups import Kind, default_lr
from frostline.errors import MissingPackage, RecipeError, RunError
from frostline.recipe import TrainRecipe
from frostline.train.optimizers import (
    MUON_TO_ADAMW,
    Both,
    build_optimizer,
    set_rate,
    state_from_tensors,
    state_to_tensors,
)

NAMES = ["sgd", "adam", "adamw", "adafactor", "lion", "muon", "rmsprop"]
KINDS: dict[str, Kind] = {
    "embed.weight": "other",
    "up.weight": "hidden",
    "up.bias": "vector",
    "conv.weight": "other",
    "层.weight": "hidden",
}
SHAPES = {"embed.weight": (11, 5), "up.weight": (7, 5), "up.bias": (7,), "conv.weight": (4, 3, 3, 3), "层.weight": (3, 9)}


def parameters(channels_last: bool = False) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    values = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    if channels_last:
        values["conv.weight"] = values["conv.weight"].contiguous(memory_format=torch.channels_last)
    return {name: nn.Parameter(value) for name, value in values.items()}


def groups_of(weights: dict[str, nn.Parameter], lr: float = 0.01, weight_decay: float = 0.1) -> list[dict]:
    return [
        {
            "params": [weights[name] for name in weights if KINDS[name] == kind],
            "names": [name for name in weights if KINDS[name] == kind],
            "lr": lr, "weight_decay": 0.0 if kind == "vector" else weight_decay, "kind": kind, "name": kind,
        }
        for kind in ("hidden", "other", "vector")
    ]  # fmt: skip


def gradient(name: str, step: int) -> Tensor:
    return torch.randn(SHAPES[name], generator=torch.Generator().manual_seed(100 * step + list(SHAPES).index(name)))


def walk(optimizer, weights: dict[str, nn.Parameter], steps: range) -> dict[str, Tensor]:
    for step in steps:
        optimizer.zero_grad()
        for name, weight in weights.items():
            weight.grad = gradient(name, step)
        set_rate(optimizer, 1 / (step + 1))
        optimizer.step()
    return {name: weight.detach().contiguous().clone() for name, weight in weights.items()}


def plain(update: Callable[[dict, Tensor, Tensor, int, float, float], Tensor]) -> dict[str, Tensor]:
    """Four steps written out: ``update(state, weight, gradient, step, lr, decay)`` returns the new weight, in float64."""
    weights = {name: weight.detach().double() for name, weight in parameters().items()}
    states: dict[str, dict] = {name: {} for name in weights}
    for step in range(4):
        for name in weights:
            decay = 0.0 if KINDS[name] == "vector" else 0.1
            weights[name] = update(states[name], weights[name], gradient(name, step).double(), step, 0.01 / (step + 1), decay)
    return weights


def sgd(state, w, g, step, lr, decay, nesterov=False):
    g = g + decay * w
    state["m"] = g if step == 0 else 0.9 * state["m"] + g
    return w - lr * (g + 0.9 * state["m"] if nesterov else state["m"])


def adam(state, w, g, step, lr, decay, decoupled=False):
    if decoupled:
        w = w - lr * decay * w
    else:
        g = g + decay * w
    state["m"] = 0.9 * state.get("m", 0) + 0.1 * g
    state["v"] = 0.999 * state.get("v", 0) + 0.001 * g * g
    return w - lr * (state["m"] / (1 - 0.9 ** (step + 1))) / ((state["v"] / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)


def rmsprop(state, w, g, step, lr, decay):
    g = g + decay * w
    state["v"] = 0.99 * state.get("v", 0) + 0.01 * g * g
    state["m"] = 0.9 * state.get("m", 0) + g / (state["v"].sqrt() + 1e-8)
    return w - lr * state["m"]


def lion(state, w, g, step, lr, decay):
    m = state.get("m", torch.zeros_like(w))
    state["m"] = 0.99 * m + 0.01 * g
    return w - lr * decay * w - lr * (0.9 * m + 0.1 * g).sign()


REFERENCES = {
    "sgd": (sgd, {}),
    "sgd nesterov": (lambda *a: sgd(*a, nesterov=True), {"nesterov": True}),
    "adam": (adam, {}),
    "adamw": (lambda *a: adam(*a, decoupled=True), {}),
    "rmsprop": (rmsprop, {}),
    "lion": (lion, {}),
}


@pytest.mark.parametrize("case", REFERENCES)
def test_the_update_is_the_one_in_the_paper(case):
    update, options = REFERENCES[case]
    weights = parameters()
    got = walk(build_optimizer(groups_of(weights), TrainRecipe(optimizer=case.split()[0], **options)), weights, range(4))
    for name, expected in plain(update).items():
        torch.testing.assert_close(got[name].double(), expected, rtol=2e-5, atol=2e-6)


def test_adafactor_is_torchs():
    weights, others = parameters(), parameters()
    got = walk(build_optimizer(groups_of(weights), TrainRecipe(optimizer="adafactor")), weights, range(4))
    groups = [{**group, "initial_lr": group["lr"]} for group in groups_of(others)]
    expected = walk(torch.optim.Adafactor(groups, foreach=False), others, range(4))
    for name in SHAPES:
        torch.testing.assert_close(got[name], expected[name])


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest():
    weights, others = parameters(), parameters()
    optimizer = build_optimizer(groups_of(weights, lr=0.1), TrainRecipe(optimizer="muon"))
    assert isinstance(optimizer, Both)
    got = walk(optimizer, weights, range(4))
    hidden, *rest = groups_of(others, lr=0.1)
    rest = [{**group, "lr": 0.1 * MUON_TO_ADAMW, "initial_lr": 0.1 * MUON_TO_ADAMW} for group in rest]
    muon, adamw = torch.optim.Muon([{**hidden, "initial_lr": 0.1}], momentum=0.9), torch.optim.AdamW(rest, foreach=False)
    expected = walk(Both([muon, adamw]), others, range(4))
    for name in SHAPES:
        torch.testing.assert_close(got[name], expected[name])
    assert [group["names"] for group in muon.param_groups] == [["up.weight", "层.weight"]]


def test_muon_without_a_hidden_matrix_is_refused():
    weights = {name: weight for name, weight in parameters().items() if KINDS[name] != "hidden"}
    with pytest.raises(RecipeError, match=r"got 'muon', but no matrix between embedding and head learns.* Use: train\.optimizer=adamw"):
        build_optimizer([group for group in groups_of(weights) if group["params"]], TrainRecipe(optimizer="muon"))


def test_nesterov_without_momentum_is_refused():
    with pytest.raises(RecipeError, match=r"nesterov: got True with momentum 0\.0, expected a momentum above 0"):
        build_optimizer(groups_of(parameters()), TrainRecipe(optimizer="sgd", nesterov=True, momentum=0.0))


def test_a_missing_lion_names_the_command(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lion_pytorch", None)
    with pytest.raises(MissingPackage, match=r"pip install 'frostline\[lion\]'"):
        build_optimizer(groups_of(parameters()), TrainRecipe(optimizer="lion"))


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", NAMES)
def test_stopped_and_resumed_is_bitwise_the_same(name, channels_last, tmp_path):
    recipe = TrainRecipe(optimizer=name)
    weights = parameters(channels_last)
    whole = walk(build_optimizer(groups_of(weights), recipe), weights, range(6))

    weights = parameters(channels_last)
    first = build_optimizer(groups_of(weights), recipe)
    walk(first, weights, range(3))
    tensors, values = state_to_tensors(first)
    safetensors.torch.save_file({key: value.clone() for key, value in tensors.items()}, tmp_path / "state.safetensors")
    values = json.loads(json.dumps(values, ensure_ascii=False))

    resumed = parameters(channels_last)
    with torch.no_grad():
        for key, weight in resumed.items():
            weight.copy_(weights[key])
    second = build_optimizer(groups_of(resumed), recipe)
    state_from_tensors(second, safetensors.torch.load_file(tmp_path / "state.safetensors"), values)
    after = walk(second, resumed, range(3, 6))
    assert all(torch.equal(after[key], whole[key]) for key in SHAPES)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "muon"])
def test_the_memory_layout_does_not_matter(name):
    """torch's fused kernels mix up the elements where a weight is in channels_last and its gradient is not."""
    results = []
    for channels_last in (False, True):
        weights = parameters(channels_last)
        results.append(walk(build_optimizer(groups_of(weights), TrainRecipe(optimizer=name)), weights, range(4)))
    for key in SHAPES:
        torch.testing.assert_close(results[0][key], results[1][key])


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_layout_that_changes_during_the_run_does_not_matter(name):
    weights, others = parameters(), parameters()
    expected = walk(build_optimizer(groups_of(weights), TrainRecipe(optimizer=name)), weights, range(4))
    optimizer = build_optimizer(groups_of(others), TrainRecipe(optimizer=name))
    walk(optimizer, others, range(2))
    others["conv.weight"].data = others["conv.weight"].data.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(walk(optimizer, others, range(2, 4)), expected)


def test_the_number_of_threads_does_not_matter():
    def run(threads: int) -> Tensor:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            weight = nn.Parameter(torch.linspace(-1, 1, 70_001))
            group = {"params": [weight], "names": ["w"], "lr": 0.1, "weight_decay": 0.1, "kind": "vector", "name": "w"}
            optimizer = build_optimizer([group], TrainRecipe())
            for step in range(3):
                weight.grad = torch.cos(weight.detach() * (step + 1))
                optimizer.step()
            return weight.detach()
        finally:
            torch.set_num_threads(before)

    assert torch.equal(run(1), run(2))


def test_more_groups_take_the_state_of_fewer():
    weights = parameters()
    few = build_optimizer(groups_of({"up.bias": weights["up.bias"]})[2:], TrainRecipe())
    weights["up.bias"].grad = gradient("up.bias", 0)
    few.step()
    many = build_optimizer(groups_of(weights), TrainRecipe())
    state_from_tensors(many, *state_to_tensors(few))
    assert torch.equal(many.state[weights["up.bias"]]["exp_avg"], few.state[weights["up.bias"]]["exp_avg"])
    assert weights["up.weight"] not in many.state
    walk(many, weights, range(1, 2))
    assert many.state[weights["up.bias"]]["step"] == 2 and many.state[weights["up.weight"]]["step"] == 1


def test_states_that_do_not_fit():
    weights = parameters()
    optimizer = build_optimizer(groups_of(weights), TrainRecipe())
    walk(optimizer, weights, range(1))
    tensors, values = state_to_tensors(optimizer)
    with pytest.raises(RunError, match=r"got that of \['adamw'\], expected \['sgd'\]"):
        state_from_tensors(build_optimizer(groups_of(weights), TrainRecipe(optimizer="sgd")), tensors, values)
    fresh = build_optimizer(groups_of(weights), TrainRecipe())
    with pytest.raises(RunError, match=r"got 'exp_avg\.other\.weight', but 'other\.weight' does not learn"):
        state_from_tensors(fresh, {"exp_avg.other.weight": torch.zeros(2)}, values)
    with pytest.raises(RunError, match=r"'exp_avg\.up\.bias' got shape \(8,\), expected one for a weight of \(7,\)"):
        state_from_tensors(fresh, {"exp_avg.up.bias": torch.zeros(8)}, values)


@pytest.mark.parametrize("name", NAMES)
def test_set_rate_multiplies_each_groups_own_rate(name):
    groups = groups_of(parameters())
    groups[0]["lr"] = 0.5
    optimizer = build_optimizer(groups, TrainRecipe(optimizer=name))
    full = [group["lr"] for group in optimizer.param_groups]
    set_rate(optimizer, 0.5)
    set_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [lr * 0.25 for lr in full]
    assert full[0] == 0.5 and full[1] == (0.001 if name == "muon" else 0.01)


@pytest.mark.parametrize("name", NAMES)
def test_a_rate_of_zero_changes_nothing(name):
    weights = parameters()
    before = {key: weight.detach().clone() for key, weight in weights.items()}
    optimizer = build_optimizer(groups_of(weights), TrainRecipe(optimizer=name))
    for key, weight in weights.items():
        weight.grad = gradient(key, 0)
    set_rate(optimizer, 0.0)
    optimizer.step()
    assert all(torch.equal(weights[key], before[key]) for key in SHAPES)


def test_default_rates():
    assert default_lr(TrainRecipe(), "lora", pretrained=True) == default_lr(TrainRecipe(), "full", pretrained=False) == 1e-3
    assert default_lr(TrainRecipe(), "last", pretrained=True) == default_lr(TrainRecipe(), "gradual", pretrained=True) == 2e-5
    assert default_lr(TrainRecipe(optimizer="muon"), "full", pretrained=False) == 1e-2
