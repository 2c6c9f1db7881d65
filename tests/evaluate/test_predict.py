"""Prediction from every kind of input; what cannot be read is one error among results; the model's mode is put back."""

import importlib
import json

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from frostline.data.dataset import Schema
from frostline.data.preprocess import ImagePreprocess, TextPreprocess
from frostline.errors import DataError, RecipeError
from frostline.evaluate.predict import predict
from frostline.models.model import Card, Model
from frostline.models.tokenizer import train_tokenizer
from tests.evaluate.parrot import ANSWER, parrot

predict_module = importlib.import_module("frostline.evaluate.predict")  # `frostline.evaluate` is a verb too

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
        predict(image_model, str(tmp_path / "t.csv"))


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


def test_batches_are_of_the_size_that_was_asked_for_and_leave_inference_mode(image_model):
    sizes, forward = [], image_model.module.forward

    def counted(pixel_values):
        sizes.append(len(pixel_values))
        assert torch.is_inference_mode_enabled()
        return forward(pixel_values)

    image_model.module.forward = counted
    results = predict(image_model, [DARK, BRIGHT, BRIGHT, DARK, BRIGHT], batch=2)
    assert sizes == [2, 2, 1] and not torch.is_inference_mode_enabled()
    assert [result["label"] for result in results] == ["暗", "bright", "bright", "暗", "bright"]


class Looks(nn.Module):
    """Gives each token a row of a table: what a token is tagged as, or what it adds to its text's vector."""

    def __init__(self, table, pooled=False):
        super().__init__()
        self.table, self.pooled = nn.Parameter(table), pooled

    def forward(self, input_ids, attention_mask):
        each = self.table[input_ids]
        return (each * attention_mask[..., None]).sum(1) / attention_mask.sum(1, keepdim=True) if self.pooled else each


TAGS = ("O", "B-人", "I-人", "B-place", "I-place")
TAGGED = {"李": 1, "明": 2, "Berlin": 3, "New": 3, "York": 4}


@pytest.fixture
def tagger():
    """Knows 李明, Berlin and New York."""
    tokenizer = train_tokenizer([*TAGGED, "lives in 住 在 ， 。 !"], "word", 100, "causal")
    table = torch.zeros(len(tokenizer), len(TAGS))
    table[:, 0] = 1
    for word, tag in TAGGED.items():
        table[tokenizer.convert_tokens_to_ids(word), tag] = 5
    schema = Schema(task="token-classification", target="tags", labels=TAGS)
    return Model(module=Looks(table), card=Card(name="custom", schema=schema, preprocess=TextPreprocess(tokenizer=tokenizer, max_length=9)))


@pytest.mark.parametrize(
    ("text", "entities"),
    [
        ("李明住在Berlin。", [("人", "李明", 0, 2), ("place", "Berlin", 4, 10)]),
        ("Berlin, 李明!  New York", [("place", "Berlin", 0, 6), ("人", "李明", 8, 10), ("place", "New York", 13, 21)]),
        ("  李 明 in  New   York.", [("人", "李 明", 2, 5), ("place", "New   York", 10, 20)]),
        ("lives in", []),
        ("", []),
    ],
)
@pytest.mark.parametrize("batch", [1, 32])
def test_entities_with_the_characters_they_stand_at(tagger, text, entities, batch):
    results = predict(tagger, texts=[text, "李明"], batch=batch)
    assert [result["input"] for result in results] == [text, "李明"]
    for one, (label, words, start, end) in zip(results[0]["entities"], entities, strict=True):
        assert one["label"] == label and one["text"] == words == text[start:end] and (one["start"], one["end"]) == (start, end)
    assert [one["text"] for one in results[1]["entities"]] == ["李明"]
    json.dumps(results)


def test_entities_behind_the_longest_length_are_not_seen(tagger):
    (result,) = predict(tagger, texts="in " * 8 + "Berlin Berlin")
    assert [(one["start"], one["end"]) for one in result["entities"]] == [(24, 30)]


@pytest.mark.parametrize("batch", [1, 2, 32])
def test_vectors(batch):
    tokenizer = train_tokenizer(["好 坏 good"], "word", 100)
    table = torch.randn(len(tokenizer), 6, generator=torch.Generator().manual_seed(0))
    card = Card(name="custom", schema=Schema(task="embedding", target="none"), preprocess=TextPreprocess(tokenizer=tokenizer))
    texts = ["好", "好 good 坏 坏 坏", "good"]
    results = predict(Model(module=Looks(table, pooled=True), card=card), texts=texts, batch=batch)
    for text, result in zip(texts, results, strict=True):
        mean = table[tokenizer(text)["input_ids"]].mean(0)
        ours = torch.tensor(result["vector"])
        assert result["input"] == text and len(ours) == 6
        torch.testing.assert_close(ours / ours.norm(), mean / mean.norm())
    json.dumps(results)


@pytest.mark.parametrize("task", ["chat", "causal-lm", "translation", "summarisation"])
def test_texts_that_are_written(task, tmp_path):
    (tmp_path / "问.txt").write_text("雪下了\n", encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text('{"text": "说 more"}\n', encoding="utf-8")
    results = predict(parrot(task), ["第1问", str(tmp_path / "问.txt"), str(tmp_path / "rows.jsonl")])
    assert results == [{"input": name, "text": ANSWER} for name in ("第1问", str(tmp_path / "问.txt"), "说 more")]
    assert predict(parrot(task), texts="第1问", max_new_tokens=1) == [{"input": "第1问", "text": ANSWER[:1]}]


def test_words_that_were_divided_already(tagger, tmp_path):
    rows = [{"tokens": ["李", "明", "in", "New", "York"]}, {"tokens": []}]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    first, second = predict(tagger, tmp_path / "t.jsonl")
    assert first["input"] == "李明in New York" and second["entities"] == []
    assert [(one["text"], one["start"], one["end"]) for one in first["entities"]] == [("李明", 0, 2), ("New York", 5, 13)]


def test_how_much_is_written_is_for_models_that_write(text_model):
    assert predict(parrot("causal-lm"), texts="第1问", max_new_tokens=2)[0]["text"] == ANSWER[:2]
    with pytest.raises(RecipeError, match=r"max_new_tokens \(--max-new-tokens\) got 3, which is for models that write"):
        predict(text_model, texts="好", max_new_tokens=3)
    with pytest.raises(RecipeError, match=r"max_new_tokens \(--max-new-tokens\) got 0, expected 1 or more"):
        predict(parrot("chat"), texts="好", max_new_tokens=0)


def test_a_bar_for_several_batches(monkeypatch):
    seen = []
    shown = predict_module.progress

    def watched(total, label, quiet):
        seen.append((total, quiet))
        return shown(total, label, True)

    monkeypatch.setattr(predict_module, "progress", watched)
    card = Card(name="custom", schema=IMAGES, preprocess=ImagePreprocess(size=8))
    for batch, quiet in ((2, False), (2, True), (4, False)):
        predict(Model(module=Brightness(), card=card), [DARK, BRIGHT, DARK], batch=batch, quiet=quiet)
    assert seen == [(3, False), (3, True), (3, True)]
