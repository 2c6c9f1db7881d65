"""The answer is what arithmetic says, and what it advises is so."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from frostline.errors import FrostlineError
from frostline.plan.estimate import estimate
from frostline.plan.target import named_targets, parse_target
from frostline.plan.wanted import Wanted
from frostline.recipe import AdaptRecipe

SMALL: dict[str, Any] = {
    "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 128, "tie_word_embeddings": False,
}  # fmt: skip
LARGE = {
    **SMALL, "num_hidden_layers": 80, "hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64,
    "num_key_value_heads": 8, "vocab_size": 128_256,
}  # fmt: skip
H200 = parse_target("h200")
LORA = AdaptRecipe(method="lora")

MEASURE = """import sys, time
import torch, transformers.models.llama.modeling_llama
from frostline.plan.estimate import estimate
from frostline.plan.target import parse_target
from frostline.plan.wanted import Wanted
from frostline.train.memory import peak_bytes
target = parse_target("h200")
start = time.process_time()
estimate(Wanted(model=sys.argv[1]), target)
print(time.process_time() - start, peak_bytes())
"""


def config(folder: Path, values: dict[str, Any]) -> str:
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    return str(folder)


def small(folder: Path, **options: Any) -> Wanted:
    return Wanted(**{"model": config(folder, SMALL), "adapt": LORA, "rows": 1000, "length": 128, "precision": "bf16", **options})


def test_llama_70b_fits_an_h200_in_four_bits_only(tmp_path: Path) -> None:
    wanted = Wanted(model=config(tmp_path, LARGE), adapt=LORA, rows=100, batch=1, length=512, precision="bf16")  # no weights are there
    result = estimate(wanted, H200)
    weights = 80 * (2 * 8192**2 + 2 * 8192 * 1024 + 3 * 8192 * 28672 + 2 * 8192) + 2 * 128_256 * 8192 + 8192
    lora = 80 * 8 * (2 * (8192 + 8192) + 2 * (8192 + 1024) + 3 * (8192 + 28672))
    assert result.bytes["weights"] == pytest.approx(2 * weights + 4 * lora, abs=1000)  # the frequencies of the positions
    assert (result.bytes["gradients"], result.bytes["optimizer"]) == (4 * lora, 8 * lora)
    assert not result.fits and result.most_rows == 0 and result.total_bytes > H200.memory_bytes
    body = 4 * 80 * (2 * 8192**2 + 2 * 8192 * 1024 + 3 * 8192 * 28672) * 512
    assert result.flops / 300 == pytest.approx(body + 4 * 512 * 8192 * 128_256, rel=0.03)
    assert [(advice.what, advice.fits) for advice in result.advice] == [("adapt.base=nf4", True), ("--on b200", True)]
    assert "does not fit" in str(result) and json.dumps(result.to_dict())


def test_llama_70b_takes_seconds_and_little_memory(tmp_path: Path) -> None:
    """Full fine-tuning in fp32 with all its advice: three networks are counted. 2.6 s and 0.45 GB on two slow cores."""
    command = [sys.executable, "-c", MEASURE, config(tmp_path, LARGE)]
    seconds, peak = map(float, subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout.split())
    assert seconds < 5 and peak < 1e9


def test_the_most_rows_are_the_most_that_fit(tmp_path: Path) -> None:
    wanted = small(tmp_path, batch=64, adapt=AdaptRecipe(method="full"))
    easy = estimate(wanted, H200)
    assert easy.fits and easy.most_rows == 64 and not easy.advice
    tight = estimate(wanted, replace(H200, memory_bytes=easy.total_bytes - 1))
    assert not tight.fits and tight.most_rows == 63 and tight.total_bytes == easy.total_bytes
    assert "63 of 64 rows at once would" in str(tight)
    assert tight.advice[0].what == "train.batch=32 train.accumulate=2" and tight.advice[0].fits  # the step keeps its rows
    none = estimate(wanted, replace(H200, memory_bytes=1000))
    assert not none.fits and none.most_rows == 0


def test_what_is_asked_for_shows_in_the_answer(tmp_path: Path) -> None:
    wanted = small(tmp_path, batch=4)
    plain = estimate(wanted, H200)
    few = estimate(replace(wanted, adapt=AdaptRecipe(method="lora", base="nf4")), H200)
    linear = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
    assert plain.bytes["weights"] - few.bytes["weights"] == linear * (2 - 0.5 - 4 / 64)
    assert estimate(replace(wanted, epochs=2), H200).flops * 3 == 2 * plain.flops
    assert estimate(replace(wanted, labelled=0.5), H200).flops < plain.flops
    assert estimate(replace(wanted, optimizer="sgd"), H200).bytes["optimizer"] * 2 == plain.bytes["optimizer"]
    assert estimate(replace(wanted, accumulate=8), H200).seconds < plain.seconds  # fewer updates
    wider = estimate(replace(wanted, adapt=AdaptRecipe(method="lora", rank_pattern={"q_proj": 16})), H200)
    assert wider.bytes["gradients"] - plain.bytes["gradients"] == 4 * 2 * 8 * (64 + 64)
    assert estimate(replace(wanted, precision="auto"), H200).bytes == plain.bytes


def test_a_much_faster_precision_is_named_where_all_fits(tmp_path: Path) -> None:
    plain = estimate(small(tmp_path, precision="fp32"), H200)
    assert plain.fits and [advice.what for advice in plain.advice] == ["train.precision=bf16"]
    assert plain.advice[0].seconds < plain.seconds and not estimate(small(tmp_path), H200).advice


@pytest.mark.parametrize("share", [0.999, 0.3])
@pytest.mark.parametrize("adapt", [AdaptRecipe(method="full"), AdaptRecipe(method="lora", rank=64)], ids=["full", "lora"])
def test_what_is_said_to_fit_fits(tmp_path: Path, adapt: AdaptRecipe, share: float) -> None:
    """Each change is applied as it is typed, and asked about again."""
    from frostline.plan.wanted import from_recipe
    from frostline.recipe_reader import resolve

    given = {"model.name": config(tmp_path, {**LARGE, "num_hidden_layers": 4}), "train.batch": "6", "data.max_length": "256"}
    words = [f"adapt={adapt.method}", *([f"adapt.rank={adapt.rank}"] if adapt.method == "lora" else [])]
    wanted = from_recipe(resolve(None, words, given)[0])
    here = replace(H200, memory_bytes=int(share * estimate(wanted, H200).total_bytes))
    result = estimate(wanted, here)
    assert not result.fits and any(advice.fits for advice in result.advice)
    for advice in result.advice:
        typed = advice.what.split()
        other = parse_target(typed[1]) if typed[0] == "--on" else here
        changes = typed[2:] if typed[0] == "--on" else typed
        kept = [] if "adapt=lora" in changes else words
        again = estimate(from_recipe(resolve(None, [*kept, *changes], given)[0]), other)
        assert (again.fits, again.total_bytes) == (advice.fits, advice.total_bytes)
        assert again.seconds == pytest.approx(advice.seconds)


def test_computing_blocks_once_more_lets_longer_rows_in(tmp_path: Path) -> None:
    wanted = Wanted(model=config(tmp_path, {**LARGE, "num_hidden_layers": 16}), adapt=LORA, batch=2, length=8192, precision="bf16")
    plain, again = (estimate(replace(wanted, recompute=recompute), H200) for recompute in (False, True))
    assert again.bytes["weights"] == plain.bytes["weights"] and again.total_bytes < 0.7 * plain.total_bytes
    assert 1.2 < again.flops / plain.flops < 1.6 and "plan.checkpoint_activations=on" in str(again)
    here = replace(H200, memory_bytes=again.total_bytes)
    assert not estimate(wanted, here).fits
    advice = next(one for one in estimate(wanted, here).advice if one.what == "plan.checkpoint_activations=on")
    assert (advice.fits, advice.total_bytes, advice.seconds) == (True, again.total_bytes, again.seconds)


def test_the_smallest_machine_that_would_do_is_named(tmp_path: Path) -> None:
    wide = {**LARGE, "num_hidden_layers": 3, "hidden_size": 16_384, "intermediate_size": 98_304}
    wanted = Wanted(model=config(tmp_path, wide), adapt=LORA, batch=1, length=64, precision="bf16")
    named = [advice.what for advice in estimate(wanted, parse_target("rtx3090")).advice if advice.what.startswith("--on")]
    assert named == ["--on l40s"]
    smaller = [target for target in named_targets() if target.memory_bytes < parse_target("l40s").memory_bytes and "bf16" in target.gflops]
    assert estimate(wanted, parse_target("l40s")).fits and not any(estimate(wanted, target).fits for target in smaller)


def test_nothing_helps_a_model_that_is_too_large(tmp_path: Path) -> None:
    result = estimate(Wanted(model=config(tmp_path, {**LARGE, "num_hidden_layers": 450})), H200)
    assert not any(advice.fits for advice in result.advice) and "Use a smaller model" in str(result)


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"batch": 0}, "train.batch got 0"),
        ({"labelled": 0.0}, "--labelled got"),
        ({"adapt": AdaptRecipe(method="head")}, "adapt got 'head'"),
        ({"adapt": AdaptRecipe(method="lora", targets=["nothing"])}, "adapt.targets: got"),
        ({"adapt": AdaptRecipe(method="full", base="nf4")}, "adapt.base got"),
        ({"optimizer": "best"}, "train.optimizer got"),
        ({"precision": "int8"}, "train.precision got 'int8'"),
        ({"model": "nowhere"}, "model got 'nowhere'"),
    ],
)
def test_what_cannot_be_estimated_is_refused(tmp_path: Path, change: dict[str, Any], hint: str) -> None:
    with pytest.raises(FrostlineError, match=hint):
        estimate(replace(small(tmp_path, rows=10), **change), H200)
