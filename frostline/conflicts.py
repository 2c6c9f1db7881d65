"""Settings that cannot be carried out, or that would be passed over without a word: all found before a run, all told together.

A recipe holds every key with its default, so that a key is "set" where its value is another one. What was set and has no effect
(the rank of a LoRA with `adapt: head`, the width of a VGG) is refused like what is wrong: whoever set it expects another run.
"""

from __future__ import annotations

from pathlib import Path

from frostline.data.clean import CLASSIFICATION
from frostline.data.dataset import Dataset, Schema
from frostline.device import missing
from frostline.errors import RecipeError
from frostline.models.load import option_conflicts
from frostline.recipe import AdaptRecipe, AugmentRecipe, DataRecipe, Recipe, TrainRecipe
from frostline.tasks.losses import loss_conflicts, loss_name
from frostline.tasks.preference import data_conflicts

_EPOCH_METRICS = {
    "class": ("loss", "accuracy", "f1_macro"),
    "multi-label": ("loss", "f1_micro", "f1_macro", "subset_accuracy"),
    "number": ("loss", "mae", "rmse", "mse", "r2"),
    "tags": ("loss", "f1", "precision", "recall", "token_accuracy", "f1_macro"),
    "chat": ("loss", "token_accuracy"),
    "causal-lm": ("loss", "bits_per_byte", "token_accuracy"),
    "translation": ("loss", "token_accuracy"),
    "summarisation": ("loss", "token_accuracy"),
    "embedding": ("loss", "spearman", "pearson", "mrr", "recall@1", "recall@5", "recall@10"),
    "preference": ("loss", "accuracy", "margin"),
    "reward": ("loss", "accuracy", "margin"),
}
"""What `train.best_by` may name, by the task or by what a label is; of others the loss alone."""

_READ_BY = {
    "last": ("last",),
    "every": ("gradual",),
    "rank": ("lora", "vera"),
    "dropout": ("lora", "vera"),
    "targets": ("lora", "vera", "ia3", "adapter"),
    **dict.fromkeys(("alpha", "rank_pattern", "alpha_pattern", "rslora", "dora", "init", "lora_plus"), ("lora",)),
    "feedforward": ("ia3",),
    **dict.fromkeys(("bottleneck", "placement"), ("adapter",)),
    "tokens": ("prompt", "p-tuning", "prefix"),
    "encoder_width": ("p-tuning", "prefix"),
}
"""Keys of `adapt`, and the methods that alone read them."""


def refuse_conflicts(recipe: Recipe, schema: Schema, data: Dataset) -> None:
    """Raise one RecipeError that names every conflict of the recipe with itself and with the data."""
    found = conflicts(recipe, schema, data)
    if found:
        raise RecipeError(
            found[0] if len(found) == 1 else "\n- ".join([f"{len(found)} settings of the recipe cannot be carried out:", *found])
        )


def conflicts(recipe: Recipe, schema: Schema, data: Dataset) -> list[str]:
    """Every setting that cannot be carried out, each as one message with its fix."""
    return [
        *conflicts_of_recipe(recipe),
        *option_conflicts(recipe, schema),
        *loss_conflicts(recipe.train, schema),
        *_of_another_loss(recipe.train, schema),
        *data_conflicts(recipe.train, schema, data.splits),
        *_with_data(recipe, schema, data),
    ]


def conflicts_of_recipe(recipe: Recipe) -> list[str]:
    """What can be said before the data is read."""
    nowhere = missing(recipe.train.device)
    return [*_out_of_range(recipe), *_of_another_method(recipe), *([nowhere] if nowhere else []), *_taken(recipe)]


def _of_another_method(recipe: Recipe) -> list[str]:
    """Keys that only another way to adapt, or another optimiser, reads. `auto` becomes head or full, which read none of them."""
    adapt, default = recipe.adapt, AdaptRecipe()
    found = [
        f"adapt.{name} got {getattr(adapt, name)!r}, which only adapt={', '.join(methods)} reads, and adapt.method is {adapt.method!r}. "
        f"Remove adapt.{name}, or use: adapt={methods[0]}"
        for name, methods in _READ_BY.items()
        if adapt.method not in methods and getattr(adapt, name) != getattr(default, name)
    ]
    found += [
        f"plan.{name} got 'on', which changes how frozen weights multiply, and adapt.method is 'full', which freezes none. "
        f"Remove plan.{name}, or use: adapt=lora"
        for name in ("int8", "prepack", "fuse_convolutions")
        if adapt.method == "full" and getattr(recipe.plan, name) == "on"
    ]
    if recipe.train.nesterov and recipe.train.optimizer != "sgd":
        found.append(
            f"train.nesterov got True, which only sgd reads, and train.optimizer is {recipe.train.optimizer!r}. "
            "Remove train.nesterov, or use: train.optimizer=sgd"
        )
    return found


def _of_another_loss(train: TrainRecipe, schema: Schema) -> list[str]:
    if train.focal_gamma == TrainRecipe().focal_gamma or (name := loss_name(train, schema)) == "focal":
        return []
    return [
        f"train.focal_gamma got {train.focal_gamma!r}, which only the focal loss reads, and the loss is {name!r}. "
        "Remove train.focal_gamma, or use: train.loss=focal"
    ]


def _taken(recipe: Recipe) -> list[str]:
    """Whether the run's folder is one that will be refused, which should not come out only after all the work before it."""
    folder = Path(recipe.out or "")
    if recipe.out is None or not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return []
    kind = "is a file" if folder.is_file() else "holds another run" if (folder / "recipe.yaml").exists() else "is not empty"
    advice = f", or go on with that run: frostline train --resume {folder}" if kind == "holds another run" else ""
    return [f"out={str(folder)!r} {kind}, expected a folder that is new or empty. Choose another with --out{advice}"]


def _out_of_range(recipe: Recipe) -> list[str]:
    train, adapt = recipe.train, recipe.adapt
    rules = [
        ("train.epochs", train.epochs, train.epochs >= 1, "1 or more", "3"),
        ("train.batch", train.batch, train.batch >= 1, "1 or more", "32"),
        ("train.accumulate", train.accumulate, train.accumulate >= 1, "1 or more", "1"),
        ("train.lr", train.lr, train.lr is None or train.lr > 0, "more than 0", "1e-3"),
        ("train.weight_decay", train.weight_decay, train.weight_decay >= 0, "0 or more", "0.01"),
        ("train.momentum", train.momentum, 0 <= train.momentum < 1, "0 or more and below 1", "0.9"),
        ("train.warmup", train.warmup, train.warmup >= 0, "0 or more", "0.06"),
        ("train.clip", train.clip, train.clip is None or train.clip > 0, "more than 0", "1"),
        ("train.ema", train.ema, train.ema is None or 0 < train.ema < 1, "between 0 and 1", "0.999"),
        ("train.early_stopping", train.early_stopping, train.early_stopping is None or train.early_stopping >= 1, "1 or more", "3"),
        (
            "train.checkpoint_every",
            train.checkpoint_every,
            train.checkpoint_every is None or train.checkpoint_every >= 1,
            "1 or more",
            "100",
        ),
        ("plan.micro_batch", recipe.plan.micro_batch, recipe.plan.micro_batch is None or recipe.plan.micro_batch >= 1, "1 or more", "8"),
        ("plan.threads", recipe.plan.threads, recipe.plan.threads is None or recipe.plan.threads >= 1, "1 or more", "2"),
        ("adapt.every", adapt.every, adapt.method != "gradual" or adapt.every >= 1, "1 or more", "1"),
        ("data.size", recipe.data.size, recipe.data.size is None or recipe.data.size >= 1, "1 or more", "224"),
        ("data.workers", recipe.data.workers, recipe.data.workers is None or recipe.data.workers >= 0, "0 or more", "2"),
        *_augment_rules(recipe.data.augment),
    ]
    return [f"{key} got {value!r}, expected {expected}. Use: {key}={example}" for key, value, fine, expected, example in rules if not fine]


def _augment_rules(augment: AugmentRecipe) -> list[tuple[str, float, bool, str, str]]:
    amounts = {name: getattr(augment, name) for name in ("mixup", "cutmix", "shear", "rotation", "width_shift", "height_shift")}
    shares = {name: getattr(augment, name) for name in ("zoom", "crop", "brightness", "contrast")}
    return [
        *((f"data.augment.{name}", value, value >= 0, "0 or more", "0.1") for name, value in amounts.items()),
        *((f"data.augment.{name}", value, 0 <= value < 1, "0 or more and below 1", "0.1") for name, value in shares.items()),
        ("data.augment.cutout", augment.cutout, 0 <= augment.cutout <= 1, "0 to 1", "0.1"),
        ("data.augment.views", augment.views or 0, augment.views is None or augment.views >= 1, "1 or more", "3"),
    ]


def _of_another_task(recipe: Recipe, schema: Schema) -> list[str]:
    """Keys of `data` that only other tasks read."""
    images, classified = schema.task == "image-classification", schema.task in CLASSIFICATION
    read = {
        "size": ("images", images),
        "max_length": ("texts", not images),
        "train_on": ("chat", schema.task == "chat"),
        "prompt": ("translation and summarisation", schema.task in ("translation", "summarisation")),
        "too_long": ("language tasks", not classified and schema.task != "causal-lm"),
        "target": ("classification", classified),
        "label_separator": ("classification", classified),
        "merge_labels": ("classification", classified),
    }
    usual = DataRecipe()
    return [
        f"data.{key} got {getattr(recipe.data, key)!r}, which is for {kind}, and the task is {schema.task!r}. Remove data.{key}"
        for key, (kind, fits) in read.items()
        if not fits and getattr(recipe.data, key) != getattr(usual, key)
    ]


def _with_data(recipe: Recipe, schema: Schema, data: Dataset) -> list[str]:
    train, augment = recipe.train, recipe.data.augment
    found = []
    validated = [
        ("early_stopping", train.early_stopping),
        ("schedule=plateau", train.schedule == "plateau"),
        ("best_by", train.best_by is not None),
    ]
    needs_validation = [name for name, on in validated if on]
    if needs_validation and "validation" not in data.splits:
        found.append(f"train.{needs_validation[0]} goes by validation results, and the data has no validation split. Use: data.val=0.1")
    known = _EPOCH_METRICS.get(schema.task, _EPOCH_METRICS.get(schema.target, ("loss",)))
    if train.best_by is not None and train.best_by not in known:
        found.append(f"train.best_by got {train.best_by!r}, expected one of {', '.join(known)}. Use: train.best_by=loss")
    elif train.best_by == "r2" and "validation" in data.splits and len(labels := data.splits["validation"]["label"].unique()) < 2:
        found.append(
            f"train.best_by got 'r2', which is not defined where all labels are alike, as in the validation split: {labels.to_pylist()!r}. "
            "Use: train.best_by=loss"
        )
    images = schema.task == "image-classification"
    found += _of_another_task(recipe, schema)
    if augment != AugmentRecipe() and not images:
        found.append(f"data.augment is for images, and the task is {schema.task!r}. Remove data.augment from the recipe")
    if augment.views is not None and not augment.random:
        found.append(f"data.augment.views got {augment.views!r}, and no random change is asked for. Use: data.augment.horizontal_flip=true")
    if (augment.mixup or augment.cutmix) and schema.target == "number":
        found.append(
            "data.augment.mixup and cutmix mix classes, and data.target is 'number'. Use: data.augment.mixup=0 data.augment.cutmix=0"
        )
    return found
