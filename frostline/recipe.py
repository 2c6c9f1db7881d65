"""The recipe: everything a run is told, as one nested dataclass that is also the YAML file and the command line's flags.

The reading of YAML and flags, and the checks of types, are in recipe_reader.py.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

TaskName = Literal[
    "image-classification",
    "text-classification",
    "token-classification",
    "chat",
    "causal-lm",
    "preference",
    "reward",
    "translation",
    "summarisation",
    "embedding",
]
"""Each is one file under tasks/."""


@dataclass(frozen=True, kw_only=True)
class AugmentRecipe:
    """Random changes to training images; meanings and signs follow Keras's ImageDataGenerator."""

    rescale: float | None = None
    """Factor for the pixels 0–255 in place of the model's own normalisation, in every split; saved with the model."""
    shear: float = 0.0
    """Largest shear angle, in degrees (0.2 is a fifth of a degree, as in Keras)."""
    zoom: float = 0.0
    """Zoom per axis, drawn from 1 - zoom to 1 + zoom."""
    horizontal_flip: bool = False
    """Mirror left and right with probability one half."""
    vertical_flip: bool = False
    """Mirror top and bottom with probability one half."""
    rotation: float = 0.0
    """Largest rotation, in degrees."""
    width_shift: float = 0.0
    """Largest horizontal shift: a fraction of the width below 1, pixels from 1 on."""
    height_shift: float = 0.0
    """Largest vertical shift: a fraction of the height below 1, pixels from 1 on."""
    crop: float = 0.0
    """Random crop: the smallest share of each side that is kept is 1 - crop."""
    brightness: float = 0.0
    """Brightness factor, drawn from 1 - brightness to 1 + brightness."""
    contrast: float = 0.0
    """Contrast factor, drawn from 1 - contrast to 1 + contrast."""
    cutout: float = 0.0
    """Side of a square that is blanked, as a share of the image's side."""
    mixup: float = 0.0
    """Alpha of mixup's Beta distribution (0: off)."""
    cutmix: float = 0.0
    """Alpha of CutMix's Beta distribution (0: off)."""
    fill: Literal["nearest", "constant", "reflect"] = "nearest"
    """What stands where the image was moved away."""
    views: int | None = None
    """So many random views of each image, taken in turn, which can be stored; null: a new one in every epoch."""

    @property
    def random(self) -> bool:
        """Whether any random change is asked for (``rescale``, ``fill`` and ``views`` alone change nothing at random)."""
        return any(getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("rescale", "fill", "views"))


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """Where the rows are, what their columns mean, and how they are divided."""

    path: str | None = None
    """A folder, a file (CSV, TSV, JSONL, Parquet, IDX; by the task TXT, CoNLL, TMX, PO), or a folder that `frostline prepare` wrote."""
    task: TaskName | None = None
    """What is to be learned; guessed from the data when not given."""
    target: Literal["class", "multi-label", "number"] = "class"
    """What a label is: one class, several classes, or a number."""
    train: str | None = None
    """File or folder of the training split, where the splits are given apart."""
    validation: str | None = None
    """File or folder of the validation split."""
    test: str | None = None
    """File or folder of the test split."""
    input_column: str | None = None
    """Column of the text (of the source, for translation), or of the image's path; guessed and printed when not given."""
    label_column: str | None = None
    """Column of the label (of the target, for translation; of the verdict, for judged answers); guessed and printed when not given."""
    group_column: str | None = None
    """Rows that share this column's value never land in two splits."""
    label_separator: str = "|"
    """What stands between several labels of one row, for target: multi-label."""
    merge_labels: bool = False
    """Merge labels that differ only in case or in spaces around them."""
    val: float = 0.1
    """Share of the rows that is held out for validation."""
    test_share: float = 0.1
    """Share of the rows that is held out for the test."""
    limit: int | None = None
    """Use at most so many rows (chosen by the seed), for a quick look."""
    seed: int | None = None
    """Decides which rows are held out; the recipe's own seed when not given."""
    encoding: str | None = None
    """Text encoding; detected (UTF-8, UTF-16, GB18030) when not given."""
    size: int | None = None
    """Side of the square image in pixels; the model's own when not given."""
    max_length: int | None = None
    """Longest text in tokens; the model's own, at most 512 (language models: 2048), when not given."""
    train_on: Literal["assistant", "last", "all"] = "assistant"
    """For chat: which tokens count: every assistant turn, the last one only, or all tokens."""
    too_long: Literal["cut", "drop", "refuse"] = "cut"
    """What becomes of a row longer than max_length; what is cut or dropped is counted."""
    prompt: str | None = None
    """For translation and summarisation by a model without an encoder: the request, with {source} where the text goes."""
    max_pixels: int = 100_000_000
    """Larger images are set aside unread (a guard against decompression bombs)."""
    workers: int | None = None
    """Threads that decode; one per core when not given. The order of rows does not depend on it."""
    augment: AugmentRecipe = field(default_factory=AugmentRecipe)
    """Random changes to training images."""


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """Which network, from which weights, with which head."""

    name: str | None = None
    """vgg16, efficientnet-lite0, cnn, mlp, lstm, gru, transformer, layers, gpt, gpt2, seq2seq, or an HF folder, hub id or GGUF file."""
    weights: str | None = None
    """A weight file (.safetensors, .pth, .h5) for the models that are defined here."""
    layers: list[str] = field(default_factory=list)
    """With name `layers`: the network by hand, as in [conv 64 3 relu, pool 2, flatten, dense 256 relu, dropout 0.5]."""
    head: list[str] = field(default_factory=list)
    """Layers before the final linear one, as in [flatten, dense 256 relu, dropout 0.5]."""
    pool: Literal["cls", "mean", "max", "attention"] | None = None
    """How the features of positions become one vector; the model's own way when not given."""
    tokenizer: Literal["word", "char", "bpe", "wordpiece", "unigram"] = "bpe"
    """For text models from zero: the kind of vocabulary that is made from the training rows."""
    vocabulary: int = 16_000
    """For text models from zero: the largest vocabulary."""
    width: int | None = None
    """For models from zero: units of a hidden layer (of the first convolution block: an eighth); 256, gpt 384, when not given."""
    depth: int | None = None
    """For models from zero: how many layers or blocks; 2, gpt by its width, when not given."""
    dropout: float | None = None
    """For models from zero; 0.1, gpt 0, when not given."""


@dataclass(frozen=True, kw_only=True)
class AdaptRecipe:
    """Where the frost line runs: what learns and what is frozen."""

    method: Literal[
        "auto", "head", "last", "full", "gradual", "lora", "vera", "ia3", "adapter",
        "prefix", "prompt", "p-tuning", "bitfit", "norms", "peft",
    ] = "auto"  # fmt: skip
    """auto: head for pretrained weights, full from zero. peft: what a peft.PeftConfig says, which is handed over in Python."""
    last: int = 2
    """With `last`: how many blocks before the head learn (also written `adapt: last 2`)."""
    rank: int = 8
    """With `lora` and `vera`: rank of the update."""
    alpha: float = 16.0
    """With `lora`: the update is scaled by alpha / rank."""
    dropout: float = 0.0
    """With `lora` and `vera`: dropout on the update's input."""
    targets: list[str] = field(default_factory=list)
    """With `lora`, `vera`, `ia3`, `adapter`: module names, globs, or all-linear; empty: all that the method is made for."""
    rank_pattern: dict[str, int] = field(default_factory=dict)
    """With `lora`: other ranks for some layers, by name or regular expression, as in {q_proj: 16}."""
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    """With `lora`: other alphas for some layers, in the same way."""
    rslora: bool = False
    """With `lora`: scale by alpha / sqrt(rank) (rsLoRA)."""
    dora: bool = False
    """With `lora`: learn each output's magnitude apart from its direction (DoRA)."""
    init: Literal["default", "pissa"] = "default"
    """With `lora`: pissa begins with the principal part of each weight."""
    lora_plus: float = 1.0
    """With `lora`: B's learning rate is this times A's (LoRA+; the paper: 16)."""
    feedforward: list[str] = field(default_factory=list)
    """With `ia3`: those of the targets whose input is scaled and not their output; empty: known by name."""
    bottleneck: int = 64
    """With `adapter`: width of the small networks."""
    placement: Literal["houlsby", "pfeiffer", "parallel"] = "pfeiffer"
    """With `adapter`: behind attention and feed-forward parts, behind feed-forward parts, or beside them."""
    tokens: int = 20
    """With `prompt`, `p-tuning`, `prefix`: how many virtual tokens."""
    encoder_width: int = 0
    """With `p-tuning`, `prefix`: width of the network that makes the virtual tokens; 0: the model's width, and none for `prefix`."""
    modules_to_save: list[str] = field(default_factory=list)
    """Names or globs of modules that learn whole beside the adapter and are saved with it, as an embedding for new tokens."""
    base: Literal["full", "int8", "int4", "nf4"] = "full"
    """How frozen linear layers are kept: as they are, or in 8 or 4 bits (QLoRA: nf4)."""
    lr_decay: float = 1.0
    """Each block's learning rate is this times the next deeper one's (1: the same everywhere)."""
    every: int = 1
    """With `gradual`: one more block thaws every so many epochs, from the head down."""


@dataclass(frozen=True, kw_only=True)
class PlanRecipe:
    """What the planner may do; every pass can be forced on or off."""

    quality: Literal["exact", "fast"] = "exact"
    """exact: only passes that give the plain result; fast: also passes that trade exactness for speed."""
    cache: Literal["auto", "on", "off"] = "auto"
    """Store the outputs of the frozen prefix and train on them."""
    channels_last: Literal["auto", "on", "off"] = "auto"
    """Keep the channels of images innermost; auto: where a few timed passes are faster so."""
    pack: Literal["auto", "on", "off"] = "auto"
    """Compute a transformer's blocks without padding; auto: where a timed batch is faster so."""
    allocator: Literal["auto", "on", "off"] = "auto"
    """Let freed memory stay with the process; for the whole process, from the first plan on."""
    fuse_adapter: Literal["auto", "on", "off"] = "auto"
    """Compute a linear layer and its LoRA update as one operation."""
    fuse_blocks: Literal["auto", "on", "off"] = "auto"
    """Compute RMS norms, rotary positions and the product of SwiGLU as one operation each."""
    fuse_attention: Literal["auto", "on", "off"] = "auto"
    """Compute attention of rows that are all as long in C++; auto: where a few timed rows are faster so."""
    prepack: Literal["auto", "on", "off"] = "auto"
    """Pack frozen weights once for this machine's fastest product; auto: the shapes that are timed faster so."""
    onednn_linear: Literal["auto", "on", "off"] = "auto"
    """Multiply with learning weights by oneDNN; auto: the shapes that are timed faster so."""
    fuse_convolutions: Literal["auto", "on", "off"] = "auto"
    """Compute a frozen convolution, its batch norm and its activation as one operation; auto: where a few timed passes are faster so."""
    int8: Literal["auto", "on", "off"] = "auto"
    """Multiply with frozen weights in int8, or in fp8 on a GPU that has it; auto: with quality fast, where faster, the loss kept."""
    checkpoint_activations: Literal["auto", "on", "off"] = "auto"
    """Compute blocks once more in the backward pass in place of keeping what they computed; auto: where memory would not do without."""
    micro_batch: int | None = None
    """Rows of a batch that are computed at a time; null: all where they fit in memory, else fewer. The step stays the batch's."""
    compile_blocks: Literal["auto", "on", "off"] = "auto"
    """Compute blocks by PyTorch's compiler; auto: in a long run, where a trial is faster so."""
    offload: Literal["auto", "on", "off"] = "auto"
    """Keep frozen weights in mapped files, which take memory only where there is enough; auto: where the run would not fit otherwise."""
    threads: int | None = None
    """Cores that compute a step; null: all, or fewer where a trial is faster so because the others load."""
    cache_limit_gb: float = 20.0
    """Most disk that the store may take, in GB."""


@dataclass(frozen=True, kw_only=True)
class TrainRecipe:
    """How the learning part learns."""

    epochs: int = 3
    """Passes over the training rows."""
    batch: int = 32
    """Rows in one forward pass."""
    accumulate: int = 1
    """Forward passes in one optimiser step; the loss is divided by the labels of all of them."""
    optimizer: Literal["sgd", "adam", "adamw", "adafactor", "lion", "muon", "rmsprop"] = "adamw"
    """What turns gradients into steps."""
    lr: float | None = None
    """Learning rate; 1e-3 for a head, an adapter (prefix: 1e-2, prompt: 3e-2) or a model from zero, 2e-5 otherwise (sgd, muon: × 10)."""
    momentum: float = 0.9
    """For sgd, rmsprop and muon."""
    nesterov: bool = False
    """For sgd."""
    weight_decay: float = 0.0
    """Not applied to biases and norms."""
    schedule: Literal["constant", "linear", "cosine", "one-cycle", "plateau"] = "constant"
    """How the learning rate changes over the run, after the warm-up; plateau: falls when validation no longer gets better."""
    warmup: float = 0.0
    """Steps of linear warm-up; below 1: a share of all steps."""
    clip: float | None = None
    """Largest norm of the gradient."""
    loss: Literal[
        "auto", "cross-entropy", "bce", "mse", "focal", "dpo", "ipo", "orpo", "kto", "simpo", "bradley-terry",
        "contrastive", "cosine", "triplet",
    ] = "auto"  # fmt: skip
    """auto: cross-entropy (class, tokens), bce (several), mse (number), dpo, bradley-terry (reward), cosine or contrastive (pairs)."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: each class weighs rows / (classes × rows of the class)."""
    label_smoothing: float = 0.0
    """For cross-entropy: this share of each label is spread over all classes; for dpo: the share of pairs labelled the wrong way."""
    focal_gamma: float = 2.0
    """For focal: how much less the rows count that are right already."""
    beta: float | None = None
    """For preferences: how much a difference in log-probability counts; 0.1 (simpo: 2) when not given."""
    margin: float = 1.0
    """For simpo and triplet: by how much the better answer (the nearer text) is to win."""
    temperature: float = 0.05
    """For contrastive: similarities are divided by it; the smaller, the more the hardest negatives count."""
    ema: float | None = None
    """Decay of an exponential moving average of the weights, which is then what is validated and saved."""
    early_stopping: int | None = None
    """Stop after so many epochs without a better validation result."""
    best_by: str | None = None
    """Validation metric that chooses the checkpoint that is kept; the task's first one (accuracy, or loss for numbers) when not given."""
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """auto: bf16 where this machine measures faster with it."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the network is computed; auto: on a GPU where PyTorch finds one, else on the processor."""
    checkpoint_every: int | None = None
    """Write a checkpoint every so many steps and after each epoch; else after epochs as often as it costs at most 5 % of the time."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All of it. ``Recipe.from_yaml`` and ``to_yaml`` are inverse to each other."""

    data: DataRecipe = field(default_factory=DataRecipe)
    model: ModelRecipe = field(default_factory=ModelRecipe)
    adapt: AdaptRecipe = field(default_factory=AdaptRecipe)
    plan: PlanRecipe = field(default_factory=PlanRecipe)
    train: TrainRecipe = field(default_factory=TrainRecipe)
    seed: int = 0
    """Order of rows, initial weights, dropout and augmentation all follow from it."""
    out: str | None = None
    """The run's folder; runs/MODEL-DATA-N when not given."""

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
        """Read a YAML file, then apply ``key=value`` overrides. Raises RecipeError with the file and line."""
        from frostline.recipe_reader import resolve

        return resolve(path, overrides)[0]

    def to_yaml(self) -> str:
        """Every field, defaults included, so that the file means the same in a later version."""
        import yaml

        class Dumper(yaml.SafeDumper):
            """Writes a text with line breaks in double quotes: elsewhere PyYAML loses the rarer ones (U+0085, U+2028)."""

        def represent(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
            return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if text.splitlines() != [text] else None)

        Dumper.add_representer(str, represent)
        return yaml.dump(dataclasses.asdict(self), Dumper=Dumper, sort_keys=False, allow_unicode=True)

    def with_values(self, values: Mapping[str, Any], source: str = "argument") -> Recipe:
        """A copy with dotted keys replaced, each value checked like a line of YAML.

        >>> Recipe().with_values({"train.lr": "3e-4", "adapt": "last 3"}).adapt.last
        3
        """
        from frostline.recipe_reader import assign

        return assign(self, values, source)


@functools.cache
def describe(cls: type) -> dict[str, str]:
    """``{field: the docstring that stands under it}`` of a recipe class, read from its source.

    >>> describe(TrainRecipe)["epochs"]
    'Passes over the training rows.'
    """
    body = ast.parse(inspect.getsource(cls)).body[0].body  # type: ignore[attr-defined]
    found = {}
    for statement, following in itertools.pairwise(body):
        if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            found[statement.target.id] = str(following.value.value)  # type: ignore[union-attr]
    return found
