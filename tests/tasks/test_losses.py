"""Each loss is torch's own as sum / count; splitting a batch changes no gradient (law 1); what conflicts is said."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight

from frostline.data.dataset import Schema
from frostline.recipe import TrainRecipe
from frostline.tasks.losses import balanced_weights, loss, loss_conflicts, loss_name
from frostline.tasks.task import LossOptions

ROWS, CLASSES = 8, 5
NAMES = tuple("abcde")


def options(target="class", weights=None, **recipe):
    labels = () if target == "number" else NAMES
    schema = Schema(task="image-classification", target=target, labels=labels)
    return LossOptions(recipe=TrainRecipe(**recipe), schema=schema, class_weights=weights)


def logits_of(outputs=CLASSES, rows=ROWS, seed=0):
    return torch.randn(rows, outputs, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).mul_(3)


def class_labels(rows=ROWS):
    return torch.randint(0, CLASSES, (rows,), generator=torch.Generator().manual_seed(1))


def soft_labels(rows=ROWS):
    return torch.rand(rows, CLASSES, generator=torch.Generator().manual_seed(2)).softmax(dim=1).double()


def several_labels(rows=ROWS):
    return (torch.rand(rows, CLASSES, generator=torch.Generator().manual_seed(3)) > 0.5).float()


def numbers(rows=ROWS):
    return torch.randn(rows, 1, generator=torch.Generator().manual_seed(4))


def mean(logits, labels, given):
    total, count = loss(logits, labels, given)
    assert total.shape == () and count.shape == ()
    return total / count


WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 3.0, 0.25])


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("labels", [class_labels(), soft_labels()], ids=["hard", "soft"])
def test_cross_entropy_is_torchs(weights, smoothing, labels):
    expected = F.cross_entropy(logits_of(), labels, None if weights is None else weights.double(), label_smoothing=smoothing)
    assert mean(logits_of(), labels, options(weights=weights, label_smoothing=smoothing)).item() == pytest.approx(
        expected.item(), rel=1e-13
    )


def test_cross_entropy_by_hand():
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]], dtype=torch.float64)
    schema = Schema(task="text-classification", labels=("猫", "狗"))
    given = LossOptions(recipe=TrainRecipe(), schema=schema, class_weights=torch.tensor([1.0, 3.0]))
    total, count = loss(logits, torch.tensor([0, 1]), given)
    assert total.item() == pytest.approx(-math.log(0.75) - 3 * math.log(0.5), rel=1e-14) and count.item() == 4


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_bce_is_torchs(weights):
    w = None if weights is None else weights.double()
    expected = F.binary_cross_entropy_with_logits(logits_of(), several_labels().double(), w)
    assert mean(logits_of(), several_labels(), options("multi-label", weights)).item() == pytest.approx(expected.item(), rel=1e-13)


@pytest.mark.parametrize("labels", [numbers(), numbers()[:, 0]], ids=["column", "flat"])
def test_mse_is_torchs_and_never_broadcasts(labels):
    logits = logits_of(1)
    assert mean(logits, labels, options("number")).item() == pytest.approx(F.mse_loss(logits, numbers().double()).item(), rel=1e-13)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize(
    ("target", "labels", "plain"),
    [
        ("class", class_labels(), "cross-entropy"),
        ("class", soft_labels(), "cross-entropy"),
        ("multi-label", several_labels(), "bce"),
    ],
)
def test_focal_with_gamma_zero_is_the_plain_loss(target, labels, plain, weights):
    focal = mean(logits_of(), labels, options(target, weights, loss="focal", focal_gamma=0.0))
    assert focal.item() == pytest.approx(mean(logits_of(), labels, options(target, weights, loss=plain)).item(), rel=1e-12)


def test_focal_is_the_papers_formula():
    logits, labels = logits_of(), class_labels()
    p = logits.softmax(1)[torch.arange(ROWS), labels]
    w = WEIGHTS.double()[labels]
    expected = (-w * (1 - p) ** 2 * p.log()).sum() / w.sum()
    assert mean(logits, labels, options(weights=WEIGHTS, loss="focal")).item() == pytest.approx(expected.item(), rel=1e-12)
    several, q = several_labels().double(), logits.sigmoid()
    expected = (-several * (1 - q) ** 1.5 * q.log() - (1 - several) * q**1.5 * (1 - q).log()).mean()
    got = mean(logits, several_labels(), options("multi-label", loss="focal", focal_gamma=1.5))
    assert got.item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("target", ["class", "multi-label"])
def test_focal_stays_finite_where_the_model_is_sure(gamma, target):
    logits = torch.tensor([[1e4, 0.0, 0.0, 0.0, 0.0], [0.0, -1e4, 40.0, 0.0, 0.0]], requires_grad=True)
    labels = torch.tensor([0, 2]) if target == "class" else F.one_hot(torch.tensor([0, 2]), CLASSES).float()
    total, _ = loss(logits, labels, options(target, loss="focal", focal_gamma=gamma))
    total.backward()
    assert total.isfinite() and logits.grad.isfinite().all()


CASES = {
    "cross-entropy": ("class", class_labels, {}),
    "weights and smoothing": ("class", class_labels, {"weights": WEIGHTS, "label_smoothing": 0.1}),
    "soft": ("class", soft_labels, {"weights": WEIGHTS}),
    "focal": ("class", class_labels, {"weights": WEIGHTS, "loss": "focal"}),
    "bce": ("multi-label", several_labels, {}),
    "binary focal": ("multi-label", several_labels, {"loss": "focal"}),
    "mse": ("number", numbers, {}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("ignored", [False, True])
def test_splitting_a_batch_changes_no_gradient(case, ignored):
    """8×1, 4×2, 1×8 and a ragged 3+3+1+1; with an ignored row, so that one part of 8×1 is empty."""
    target, make, recipe = CASES[case]
    labels = make().clone()
    if ignored:
        labels[3] = float("nan") if target == "number" else -100
    inputs, given = logits_of(6, seed=5), options(target, **recipe)

    def gradient(sizes):
        weight = logits_of(1 if target == "number" else CLASSES, rows=6, seed=6).requires_grad_()
        count = torch.zeros((), dtype=torch.float64)
        for x, y in zip(inputs.split(sizes), labels.split(sizes), strict=True):
            total, rows = loss(x @ weight, y, given)
            total.backward()
            count += rows
        return weight.grad / count

    reference = gradient([8])
    assert reference.isfinite().all() and reference.abs().max() > 1e-3
    for sizes in ([1] * 8, [2] * 4, [3, 3, 1, 1]):
        assert (gradient(sizes) - reference).abs().max() < 1e-10


@pytest.mark.parametrize("case", CASES)
def test_ignored_rows_count_nothing_even_when_their_logits_are_not_finite(case):
    target, make, recipe = CASES[case]
    labels, given = make().clone(), options(target, **recipe)
    logits = logits_of(1 if target == "number" else CLASSES)
    expected = loss(logits[2:], labels[2:], given)
    labels[:2] = float("nan") if target == "number" else -100
    logits[0], logits[1] = float("inf"), float("nan")
    logits.requires_grad_()
    total, count = loss(logits, labels, given)
    assert total.item() == expected[0].item() and count.item() == expected[1].item()
    total.backward()
    assert (logits.grad[:2] == 0).all() and logits.grad.isfinite().all()
    total, count = loss(logits[:2], labels[:2], given)
    assert total.item() == 0 and count.item() == 0


def test_a_number_of_minus_100_counts():
    total, count = loss(torch.zeros(1, 1), torch.tensor([[-100.0]]), options("number"))
    assert total.item() == 10_000 and count.item() == 1


@pytest.mark.parametrize("case", CASES)
def test_half_precision_is_computed_in_float32(case):
    target, make, recipe = CASES[case]
    logits = logits_of(1 if target == "number" else CLASSES).bfloat16()
    total, count = loss(logits, make(), options(target, **recipe))
    expected = loss(logits.float(), make(), options(target, **recipe))
    assert total.dtype == torch.float32 and count.dtype == torch.float32
    assert total == expected[0] and count == expected[1]


def test_balanced_weights_are_scikit_learns():
    labels = np.array([0, 0, 0, 1, 2, 2])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert balanced_weights(labels, 3).numpy() == pytest.approx(expected)
    with_gaps = balanced_weights(torch.tensor([0, -100, 2, 2, -100]), 4)
    assert with_gaps.tolist() == pytest.approx([3 / 4, 1.0, 3 / 8, 1.0]) and with_gaps.dtype == torch.float32
    assert balanced_weights(torch.tensor([[1, 0], [1, 1], [1, 0]]), 2).tolist() == pytest.approx([0.5, 1.5])


@pytest.mark.parametrize(("target", "expected"), [("class", "cross-entropy"), ("multi-label", "bce"), ("number", "mse")])
def test_auto_fits_the_target_and_conflicts_with_nothing(target, expected):
    given = options(target)
    assert loss_name(given.recipe, given.schema) == expected
    assert loss_conflicts(given.recipe, given.schema) == []


def test_what_fits_is_computed_and_what_does_not_is_a_conflict():
    fitting = {("class", "cross-entropy"), ("class", "focal"), ("multi-label", "bce"), ("multi-label", "focal"), ("number", "mse")}
    for target, name in itertools.product(("class", "multi-label", "number"), ("cross-entropy", "bce", "mse", "focal")):
        given = options(target, loss=name)
        assert (loss_conflicts(given.recipe, given.schema) == []) == ((target, name) in fitting)


def test_conflicts_say_where_what_and_the_fix():
    given = options("number", loss="focal", label_smoothing=0.1, class_weights="balanced", focal_gamma=-1.0)
    found = loss_conflicts(given.recipe, given.schema)
    assert [message.split(":")[0] for message in found] == [
        "train.loss",
        "train.label_smoothing",
        "train.class_weights",
        "train.focal_gamma",
    ]
    assert "'focal' does not fit data.target 'number', expected mse" in found[0]
    assert all("Use: train." in message for message in found)
    smoothed = options("multi-label", label_smoothing=0.1)
    assert "0.1 has a meaning for cross-entropy only, and the loss is 'bce'" in loss_conflicts(smoothed.recipe, smoothed.schema)[0]
    share = options(label_smoothing=1.5)
    assert "1.5 is not a share" in loss_conflicts(share.recipe, share.schema)[0]
