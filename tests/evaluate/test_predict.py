"""Prediction from every kind of input; what cannot be read is one error among results; the model's mode is put back."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from frostline.data.dataset import Schema
from frostline.data.preprocess import ImagePreprocess, TextPreprocess
from frostline.errors import DataError
from frostline.evaluate.predict import expand_inputs, predict, predict_batches, show
from frostline.models.model import Card, Model

IMAGES = Schema(task="image-classification", labels=("暗", "bright"))
TEXTS = Schema(task="text-classification", labels=("bad", "好"))
DARK, BRIGHT = (np.full((10, 12, 3), value, dtype=np.uint8) for value in (5, 250))


class Brightness(nn.Module):
    """Certain of "bright" above half; its dropout shows whether it was put in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Dropout(0.5).eval()
        self.dropout = nn.Dropout(0.5)
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, pixel_values):
        mean = self.dropout(self.frozen(pixel_values)).mean(dim=(1, 2, 3)) - 0.5
        return torch.stack([-mean, mean], dim=1) * self.scale


class LikesLowIds(nn.Module):
    """Counts the token 好 (id 1), padding left out."""

    def forward(self, input_ids, attention_mask):
        good = ((input_ids == 1) * attention_mask).sum(1).float()
        return torch.stack([torch.full_like(good, 0.5), good], dim=1)


@pytest.fixture
def image_model():
    return Model(module=Brightness(), card=Card(name="custom", schema=IMAGES, preprocess=ImagePreprocess(size=8)))


@pytest.fixture
def text_model():
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "好": 1, "[PAD]": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]")
    return Model(module=LikesLowIds(), card=Card(name="custom", schema=TEXTS, preprocess=TextPreprocess(tokenizer=tokenizer)))


@pytest.fixture
def folder(tmp_path):
    """a.png (dark), 子/b.jpg (bright), 子/broken.jpg, and things that are no images."""
    (tmp_path / "子" / ".hidden").mkdir(parents=True)
    Image.fromarray(DARK).save(tmp_path / "a.png")
    Image.fromarray(BRIGHT).save(tmp_path / "子" / "b.jpg")
    Image.fromarray(BRIGHT).save(tmp_path / "子" / ".hidden" / "c.jpg")
    (tmp_path / "子" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "notes.txt").write_text("好")
    return tmp_path


def test_one_image_of_each_kind(image_model, folder):
    for one in (str(folder / "子" / "b.jpg"), folder / "子" / "b.jpg", BRIGHT, BRIGHT[:, :, 0], Image.fromarray(BRIGHT)):
        (result,) = predict(image_model, one)
        assert result["label"] == "bright" and result["probability"] > 0.99
        assert list(result["probabilities"]) == ["bright", "暗"] and sum(result["probabilities"].values()) == pytest.approx(1)
        json.dumps(result)
    assert [result["label"] for result in predict(image_model, np.stack([DARK, BRIGHT]))] == ["暗", "bright"]


@pytest.mark.parametrize("batch", [1, 2, 32])
def test_a_folder_with_a_broken_file(image_model, folder, batch):
    results = predict(image_model, str(folder), batch=batch)
    assert [result["input"] for result in results] == [str(folder / name) for name in ("a.png", "子/b.jpg", "子/broken.jpg")]
    assert [result.get("label") for result in results] == ["暗", "bright", None]
    assert "broken.jpg" in results[2]["error"] and "label" not in results[2]


@pytest.mark.parametrize("target", ["number", "multi-label"])
def test_other_targets(image_model, target):
    schema = Schema(task="image-classification", target=target, labels=() if target == "number" else IMAGES.labels)
    image_model.card.schema = schema
    (result,) = predict(image_model, BRIGHT)
    assert isinstance(result["label"], float) if target == "number" else result["label"] == ["bright"]


def test_a_table_of_images_stays_in_its_folder(image_model, folder):
    outside = folder / "子" / "list.csv"
    outside.write_text("path,label\nb.jpg,x\n../a.png,y\nabsent.jpg,z\n", encoding="utf-8")
    first, second, third = predict(image_model, str(outside))
    assert first["label"] == "bright"
    assert "lies outside" in second["error"] and "list.csv:3" in second["error"]
    assert "'absent.jpg' does not exist" in third["error"]


def test_texts_files_folders_and_tables(text_model, folder):
    (folder / "t.csv").write_text("label,评论\nx,好好好\ny,no\n", encoding="utf-8")
    (folder / "t.jsonl").write_text('{"text": "好 good"}\n{"text": ""}\n', encoding="utf-8")
    results = predict(text_model, ["很好好", "", str(folder / "notes.txt"), str(folder / "t.csv"), str(folder / "t.jsonl"), str(folder)])
    assert [result["label"] for result in results] == ["好", "bad", "好", "好", "bad", "好", "bad", "好"]
    assert [result["input"] for result in results[:5]] == ["很好好", "", str(folder / "notes.txt"), "好好好", "no"]


def test_texts_are_taken_as_they_are(text_model, image_model, folder):
    path = str(folder / "notes.txt")
    assert [result["input"] for result in predict(text_model, texts=[path, "好"])] == [path, "好"]
    assert predict(text_model, texts="好")[0]["label"] == "好"
    with pytest.raises(DataError, match="texts: '好' was given to a model for image-classification, expected images"):
        predict(image_model, texts=["好"])


def test_the_order_of_results_is_that_of_the_inputs(text_model):
    texts = ["好" * length for length in (9, 1, 30, 0, 4)] + ["x" * 500]
    assert [result["input"] for result in predict(text_model, texts, batch=2)] == texts
    assert [result["label"] for result in predict(text_model, texts, batch=2)] == ["好", "好", "好", "bad", "好", "bad"]


def test_nothing_gives_nothing(image_model):
    assert predict(image_model, []) == []


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("no/such.jpg", r"inputs: 'no/such\.jpg' does not exist, expected a file or folder"),
        ("", "inputs: '' does not exist"),
        ([3], "inputs: 3 is a int, expected a path"),
    ],
)
def test_what_is_no_input_is_said(image_model, inputs, message):
    with pytest.raises(DataError, match=message):
        predict(image_model, inputs)


def test_a_folder_or_table_without_anything_to_predict(image_model, tmp_path):
    with pytest.raises(DataError, match=r"holds no file to predict, expected \.jpg"):
        predict(image_model, str(tmp_path))
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="no column looks like the image path; the columns are: 'a', 'b'"):
        expand_inputs([str(tmp_path / "t.csv")], IMAGES)


def test_a_pillow_image_is_turned_upright_like_its_file(image_model, tmp_path):
    pixels = np.zeros((16, 24, 3), dtype=np.uint8)
    pixels[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    image_model.module.forward = lambda pixel_values: torch.stack([pixel_values[:, 0, 0, 0], pixel_values[:, 0, -1, 0]], dim=1)
    (from_file,), (from_image,) = predict(image_model, tmp_path / "a.png"), predict(image_model, Image.open(tmp_path / "a.png"))
    assert from_file == from_image
    (unturned,) = predict(image_model, pixels)
    assert unturned["probabilities"] != from_image["probabilities"]


def test_the_column_and_the_encoding_of_a_table(text_model, tmp_path):
    path, said = tmp_path / "t.csv", []
    path.write_bytes("text,备注\nno,好好好\n".encode("gb18030"))
    assert [predict(text_model, path, say=said.append)[0]["input"], *said] == [
        "no",
        "t.csv: read as gb18030 (guessed; set --encoding if the text looks wrong)",
        "text column: 'text' (guessed; set --column)",
    ]
    said.clear()
    for options in ({"column": "备注"}, {"usual_column": "备注"}, {"usual_column": "text+备注", "column": "备注"}):
        assert predict(text_model, path, encoding="gb18030", say=said.append, **options)[0]["input"] == "好好好"
    assert predict(text_model, path, usual_column="text+备注")[0]["input"] == "no 好好好"
    assert predict(text_model, path, usual_column="absent")[0]["input"] == "no", "a run's column is taken where it is"
    assert said == []
    with pytest.raises(DataError, match=r"--column got 'absent'.*the columns are: 'text', '备注'. Set --column NAME$"):
        predict(text_model, path, column="absent")
    with pytest.raises(DataError, match=r"is not 'utf-8', which --encoding asks for"):
        predict(text_model, path, encoding="utf-8")


def test_a_path_to_nothing_is_no_text(text_model, tmp_path):
    with pytest.raises(DataError, match=r"absent\.txt' does not exist.*--text"):
        predict(text_model, tmp_path / "absent.txt")


def test_modes_are_put_back_also_after_an_error(image_model):
    module = image_model.module.train()
    module.frozen.eval()
    assert predict(image_model, [BRIGHT] * 3) == predict(image_model, [BRIGHT] * 3)  # dropout was off
    assert module.training and module.dropout.training and not module.frozen.training
    module.forward = lambda pixel_values: 1 / 0
    with pytest.raises(ZeroDivisionError):
        predict(image_model, BRIGHT)
    assert module.training and module.dropout.training and not module.frozen.training


def test_batches_leave_the_caller_out_of_inference_mode(image_model):
    def encode(items):
        return {"pixel_values": torch.stack([torch.full((3, 2, 2), value) for value in items])}

    image_model.module.train()
    sizes = []
    for scores in predict_batches(image_model, encode, [0.0, 1.0, 1.0, 0.0, 1.0], batch=2):
        assert not torch.is_inference_mode_enabled() and image_model.module.training
        assert scores.dtype == np.float32
        sizes.append(len(scores))
        assert show(IMAGES, scores[-1])["label"] in IMAGES.labels
    assert sizes == [2, 2, 1]
