from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from frostline.adapt.freeze import freeze, frozen_hash, frozen_names, is_frozen, unfreeze


def network() -> nn.Sequential:
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 4, 3))
    return nn.Sequential(body, nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 2))


def head_only(name: str) -> bool:
    return name.startswith("3.")


def test_only_what_learns_requires_a_gradient_and_old_gradients_are_dropped():
    module = network()
    module(torch.randn(2, 3, 6, 6)).sum().backward()
    freeze(module, head_only)
    assert [name for name, p in module.named_parameters() if p.requires_grad] == ["3.weight", "3.bias"]
    assert [name for name, p in module.named_parameters() if p.grad is not None] == ["3.weight", "3.bias"]


@pytest.mark.parametrize("wake", [lambda m: m.train(), lambda m: m[0].train(), lambda m: m[0][1].train(True), lambda m: m.eval().train()])
def test_train_cannot_undo_it(wake):
    module = network()
    freeze(module, head_only)
    wake(module)
    assert not any(part.training for part in module[0].modules())
    assert all(is_frozen(part) for part in module[0].modules())


def test_the_learning_part_still_changes_its_mode():
    module = network()
    freeze(module, head_only)
    assert module.training and module[2].training and module[3].training
    module.eval()
    assert not any(part.training for part in module.modules())
    module.train()
    assert module[2].training and not module[0].training


def test_a_module_of_a_class_with_its_own_train_is_still_asked():
    class Counting(nn.Linear):
        calls = 0

        def train(self, mode: bool = True) -> Counting:
            self.calls += 1
            return super().train(mode)

    module = nn.Sequential(Counting(2, 2), nn.Linear(2, 1))
    freeze(module, lambda name: name.startswith("1."))
    module.train()
    assert module[0].calls > 0 and not module[0].training


def test_deepcopy_keeps_it_for_the_copy_and_not_for_the_original():
    module = network()
    freeze(module, head_only)
    twin = copy.deepcopy(module)
    unfreeze(module)
    twin.train()
    assert module[0].training and not twin[0].training and not twin[0][1].training
    twin(torch.randn(4, 3, 6, 6))
    assert twin[0][1].num_batches_tracked == 0
    unfreeze(twin)
    assert twin[0][1].training


def test_freezing_again_replaces_the_policy_and_keeps_the_mode():
    module = network()
    for policy in (head_only, lambda name: not head_only(name), head_only, head_only):
        freeze(module, policy)
        assert module.training
        assert [is_frozen(module[0]), is_frozen(module[3])] == ([True, False] if policy is head_only else [False, True])
    unfreeze(module)
    assert all(part.training for part in module.modules()) and not any("train" in part.__dict__ for part in module.modules())
    module.eval()
    freeze(module, head_only)
    assert not module.training and not module[3].training


def test_the_state_dict_is_untouched():
    module = network()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    freeze(module, head_only)
    after = module.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)


def test_modules_without_parameters_go_with_their_container():
    module = nn.ModuleDict({
        "body": nn.ModuleDict({"linear": nn.Linear(2, 2), "drop": nn.Dropout(), "norm": nn.BatchNorm1d(2, affine=False)}),
        "drop": nn.Dropout(),
        "head": nn.Linear(2, 2),
    })  # fmt: skip
    freeze(module, lambda name: name.startswith("head"))
    assert is_frozen(module["body"]["drop"]) and is_frozen(module["body"]["norm"]) and not is_frozen(module["drop"])


def test_in_a_sequence_dropout_goes_with_what_it_feeds():
    module = nn.Sequential(
        nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.Dropout()), nn.Linear(2, 2), nn.Dropout()
    )
    freeze(module, lambda name: name.startswith("4."))
    assert [is_frozen(part) for part in module] == [True, True, True, False, False, False]


def test_frozen_batch_norm_inside_a_learning_container_is_frozen():
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    freeze(module, lambda name: name.startswith("0."))
    assert is_frozen(module[1]) and not is_frozen(module)


def test_the_frozen_output_of_a_row_does_not_depend_on_its_batch_mates():
    module = network().double()
    freeze(module, head_only)
    module.train()
    rows = torch.randn(5, 3, 6, 6, dtype=torch.float64)
    together = module[0](rows)
    assert torch.equal(together, module[0](rows))
    for mates in ([0], [0, 3], [0, 4, 2, 1]):
        torch.testing.assert_close(module[0](rows[mates])[0], together[0], rtol=1e-12, atol=1e-12)


def test_tied_weights_learn_if_one_of_their_names_does():
    module = nn.ModuleDict({"embedding": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    module["head"].weight = module["embedding"].weight
    freeze(module, lambda name: name.startswith("head"))
    assert module["embedding"].weight.requires_grad and not is_frozen(module["embedding"])


def test_integer_parameters_never_learn():
    module = nn.Linear(2, 2)
    module.codes = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
    unfreeze(module)
    assert module.weight.requires_grad and not module.codes.requires_grad


def test_the_hash_sees_every_frozen_tensor_and_nothing_else():
    module = network()
    module.register_buffer("learning_container", torch.zeros(2))
    freeze(module, head_only)
    start = frozen_hash(module)
    assert start == frozen_hash(copy.deepcopy(module))
    for name, tensor in module.state_dict().items():
        flat = tensor.reshape(-1)
        kept = flat[-1].clone()
        flat[-1] += 1
        assert (frozen_hash(module) != start) == (name in frozen_names(module)) == name.startswith("0."), name
        flat[-1] = kept
    assert frozen_hash(module) == start


def test_the_hash_reads_bytes_of_any_type_and_shape():
    module = nn.Linear(3, 3).bfloat16()
    module.register_buffer("flag", torch.tensor(True))
    module.register_buffer("empty", torch.zeros(0))
    freeze(module, lambda name: False)
    before = frozen_hash(module)
    module.flag.fill_(False)
    assert frozen_hash(module) != before


def test_a_frozen_module_is_saved_and_read_whole(tmp_path):
    module = network()
    freeze(module, head_only)
    torch.save(module, tmp_path / "whole.pt")
    again = torch.load(tmp_path / "whole.pt", weights_only=False)
    again.train()
    assert all(is_frozen(part) and not part.training for part in again[0].modules()) and again[3].training
    unfreeze(again)
    assert again[0][1].training and module[0][1].training is False
