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
