from __future__ import annotations

import json
from pathlib import Path

import pytest

from frostline.data.preprocess import ImagePreprocess
from frostline.errors import ModelError
from frostline.models.image_processor import image_processor_config, read_image_preprocess

CASES = {
    '{"image_processor_type": "ViTImageProcessor", "size": 224, "resample": 2}': ImagePreprocess(size=224, mean=(0.5,) * 3, std=(0.5,) * 3),
    '{"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3,'
    ' "image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}': ImagePreprocess(
        size=224, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0), interpolation="bicubic", crop=0.875
    ),
    '{"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}, "do_normalize": false}': ImagePreprocess(
        size=384, interpolation="bicubic"
    ),
    '{"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224},'
    ' "resample": 3, "do_normalize": false, "rescale_factor": 0.5}': ImagePreprocess(
        size=224, scale=0.5, interpolation="bicubic", crop=0.875
    ),
}


def _read(folder: Path, text: str) -> ImagePreprocess:
    (folder / "preprocessor_config.json").write_text(text)
    return read_image_preprocess(folder)


@pytest.mark.parametrize("text", CASES)
def test_what_processors_mean(text: str, tmp_path: Path) -> None:
    assert _read(tmp_path, text) == CASES[text]


@pytest.mark.parametrize("preprocess", CASES.values(), ids=lambda preprocess: f"{preprocess.size}-{preprocess.crop}")
def test_written_and_read(preprocess: ImagePreprocess, tmp_path: Path) -> None:
    assert _read(tmp_path, json.dumps(image_processor_config(preprocess))) == preprocess


def test_a_centre_crop_of_the_whole_side_is_not_squashed(tmp_path: Path) -> None:
    size = '"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}, "resample": 2'
    crop = _read(tmp_path, f'{{"image_processor_type": "BitImageProcessor", {size}}}').crop
    assert 0.9999 < crop < 1.0
    assert round(224 / crop) == 224


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"preprocessor_config.json' is missing, expected the size and normalisation"):
        read_image_preprocess(tmp_path)
    with pytest.raises(ModelError, match=r"size .* do not give a square image"):
        _read(tmp_path, '{"image_processor_type": "ViTImageProcessor", "size": {"height": 20, "width": 30}}')
    with pytest.raises(ModelError, match=r"resample 1 is not supported, expected 0 \(nearest\), 2 \(bilinear\) or 3 \(bicubic\)"):
        _read(tmp_path, '{"image_processor_type": "ViTImageProcessor", "resample": 1}')
    with pytest.raises(ModelError, match=r"preprocessor_config.json' cannot be used"):
        _read(tmp_path, "[1")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('{"image_processor_type": "EfficientNetImageProcessor", "size": {"height": 64, "width": 64}}', "gives other values"),
        ('{"image_processor_type": "LevitImageProcessor", "size": {"shortest_edge": 64}, "crop_size": 64}', "gives other values"),
        ('{"image_processor_type": "BeitImageProcessor", "size": 80, "do_center_crop": true, "crop_size": 64}', "gives other values"),
        ('{"image_processor_type": "PerceiverImageProcessor", "size": 64, "crop_size": 64}', "gives other values"),
        ('{"image_processor_type": "ViTImageProcessor", "size": 64, "do_resize": false}', r"makes the shape \(1, 3, 77, 101\)"),
    ],
    ids=lambda value: value[26:40] if value.startswith("{") else "",
)
def test_a_processor_with_steps_of_its_own_is_an_error(text: str, what: str, tmp_path: Path) -> None:
    kind = json.loads(text)["image_processor_type"]
    with pytest.raises(ModelError, match=rf"its '{kind}\w*' {what}.*(mean difference [0-9.]+|pixels, frostline)"):
        _read(tmp_path, text)


@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize(
    "values",
    [
        {"image_processor_type": "EfficientNetImageProcessor", "size": 1, "include_top": False},
        {"image_processor_type": "BeitImageProcessor", "size": 1, "do_center_crop": True, "crop_size": 1},
        {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 1}, "crop_size": 1},
        {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 1.14}, "crop_size": 1},
        {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 1}, "crop_pct": 0.9},
    ],
    ids=lambda values: values["image_processor_type"],
)
def test_processors_that_agree_at_real_sizes(values: dict, size: int, tmp_path: Path) -> None:
    def sized(value: object) -> object:
        return {key: sized(side) for key, side in value.items()} if isinstance(value, dict) else round(value * size)

    values = {key: sized(value) if "size" in key else value for key, value in values.items()}
    assert _read(tmp_path, json.dumps(values)).size == size


def test_a_class_that_does_not_normalise(tmp_path: Path) -> None:
    text = '{"image_processor_type": "MobileViTImageProcessor", "size": {"shortest_edge": 72}, "crop_size": 64}'
    read = _read(tmp_path, text)
    assert (read.mean, read.std, read.channels) == ((0.0,) * 3, (1.0,) * 3, "bgr")


def test_a_size_that_would_fill_the_memory(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"size got .* expected 1 to 4096 pixels"):
        _read(tmp_path, '{"image_processor_type": "ViTImageProcessor", "size": 1000000}')
    with pytest.raises(ModelError, match=r"resizes to \d+ pixels, expected at most 4096"):
        _read(tmp_path, '{"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}, "crop_pct": 0.001}')
