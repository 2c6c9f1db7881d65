"""The numbers are the libraries'; Chinese is cut into characters."""

from __future__ import annotations

import sys

import pytest

from frostline.errors import MissingPackage
from frostline.tasks.text_metrics import NAMES, text_metrics

ENGLISH = (["the cat sat on the mat", "a dog runs in the park today"], ["the cat is on the mat", "a dog ran in the park today"])
CHINESE = (["今天天气很好我们去公园", "雪下了一整夜"], ["今天天气真好我们去公园吧", "雪下了一整夜"])


@pytest.mark.parametrize(("texts", "tokenize"), [(ENGLISH, "13a"), (CHINESE, "zh")])
def test_bleu_and_chrf_are_sacrebleus(texts, tokenize):
    import sacrebleu

    given, expected = texts
    found = text_metrics(given, expected, ["bleu", "chrf"])
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(given, [expected], tokenize=tokenize).score) and found["bleu"] > 10
    assert found["chrf"] == pytest.approx(sacrebleu.corpus_chrf(given, [expected]).score)


def test_rouge_of_english_is_rouge_scores():
    from rouge_score.rouge_scorer import RougeScorer

    names = ["rouge1", "rouge2", "rougeL"]
    rows = [RougeScorer(names).score(expected, given) for given, expected in zip(*ENGLISH)]
    found = text_metrics(*ENGLISH, names)
    assert found == {name: pytest.approx(sum(row[name].fmeasure for row in rows) / 2) for name in names}


def test_rouge_of_chinese_counts_characters():
    assert text_metrics(["雪很白"], ["雪很黑吗"], ["rouge1"])["rouge1"] == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))


@pytest.mark.parametrize("texts", [ENGLISH[1], CHINESE[1], ["", "x"]])
def test_equal_texts_have_the_best_scores(texts):
    found = text_metrics(texts, texts, NAMES)
    assert list(found) == list(NAMES) and found["exact_match"] == 1
    if texts[0]:
        assert found["bleu"] == pytest.approx(100) and found["rougeL"] == pytest.approx(1)


def test_exact_match_forgives_spaces_around():
    assert text_metrics(["a ", "b"], ["a", "c"], ["exact_match"]) == {"exact_match": 0.5}


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(MissingPackage, match=r"the metric BLEU needs the package 'sacrebleu'.*pip install 'frostline\[text\]'"):
        text_metrics(["a"], ["a"], ["bleu"])
