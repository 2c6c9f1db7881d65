"""What a model's card keeps of its preprocessing: plain values, by which a saved model and a prefix store are known."""

import json

from frostline.data.preprocess import ImagePreprocess, TextPreprocess, with_prompt


def test_image_preprocessing_is_plain_json():
    preprocess = ImagePreprocess(size=224, mean=(0.5, 0.5, 0.5), channels="bgr")
    values = json.loads(json.dumps(preprocess.to_dict()))
    assert values.pop("kind") == "image"
    again = ImagePreprocess(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})
    assert again == preprocess


def test_text_preprocessing_leaves_the_tokenizer_to_its_own_files():
    values = TextPreprocess(tokenizer=object(), max_length=64).to_dict()
    assert values == {"kind": "text", "max_length": 64, "inputs": ("input_ids", "attention_mask")}


def test_a_prompt_stands_in_the_card_where_there_is_one():
    text, image = TextPreprocess(tokenizer=None), ImagePreprocess(size=8)
    assert with_prompt(text, None) is text and with_prompt(image, "{source}") is image
    assert with_prompt(text, "译：{source}").to_dict() == {**text.to_dict(), "prompt": "译：{source}"}
