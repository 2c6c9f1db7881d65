"""What was written against what was expected: BLEU, chrF, ROUGE and exact match.

bleu            Papineni et al. 2002, over the whole corpus, by sacrebleu (Post, "A call for clarity in reporting BLEU scores", 2018);
                Chinese is cut into characters by its ``zh`` tokenizer, Japanese and Korean by ``char``; 0 to 100
chrf            Popović 2015, character n-grams up to 6, by sacrebleu; 0 to 100
rouge1 rouge2   F of unigrams, bigrams and of the longest common subsequence (Lin 2004), by rouge_score, the mean over rows; 0 to 1.
rougeL          Its own tokenizer drops all but a to z; here a word is a run of letters and digits of any script, and a Chinese,
                Japanese or Korean character is a word. On English text without accents this is the same
exact_match     the share of rows that are equal, but for spaces around
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import SimpleNamespace

from frostline.errors import require

ROUGE = ("rouge1", "rouge2", "rougeL")
NAMES = ("exact_match", "bleu", "chrf", *ROUGE)
_HAN, _KANA, _HANGUL = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff", "\u3040-\u30ff", "\uac00-\ud7af"
_WORD = re.compile(rf"[{_HAN}{_KANA}{_HANGUL}]|[^\W_{_HAN}{_KANA}{_HANGUL}]+")


def text_metrics(predictions: Sequence[str], references: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    """The named metrics, in that order. Raises MissingPackage where a package that computes them is not installed.

    >>> text_metrics(["雪很白"], ["雪很白 "], ["exact_match"])
    {'exact_match': 1.0}
    """
    assert len(predictions) == len(references) > 0, f"{len(predictions)} predictions for {len(references)} references"
    unknown = [name for name in names if name not in NAMES]
    assert not unknown, f"{unknown} are no metrics of texts, which are {', '.join(NAMES)}"
    found: dict[str, float] = {}
    if "exact_match" in names:
        found["exact_match"] = sum(a.strip() == b.strip() for a, b in zip(predictions, references)) / len(references)
    if "bleu" in names:
        bleu = require("sacrebleu", "text", "the metric BLEU").corpus_bleu(
            list(predictions), [list(references)], tokenize=bleu_tokenizer(references), force=True
        )
        found["bleu"] = float(bleu.score)
    if "chrf" in names:
        found["chrf"] = float(require("sacrebleu", "text", "the metric chrF").corpus_chrf(list(predictions), [list(references)]).score)
    if rouge := [name for name in names if name in ROUGE]:
        found.update(_rouge(predictions, references, rouge))
    return {name: found[name] for name in names}


def bleu_tokenizer(references: Sequence[str]) -> str:
    """How sacrebleu is to cut the references: by what most of their letters are.

    >>> bleu_tokenizer(["hello"]), bleu_tokenizer(["iPhone 很好用，电池也耐用"]), bleu_tokenizer(["雪が降る"])
    ('13a', 'zh', 'char')
    """
    text = "".join(references)
    han, other = len(re.findall(f"[{_HAN}]", text)), len(re.findall(f"[{_KANA}{_HANGUL}]", text))
    letters = sum(character.isalpha() for character in text)
    if 2 * (han + other) <= letters:
        return "13a"
    return "char" if 10 * other > han else "zh"


def words(text: str) -> list[str]:
    """The words that ROUGE counts.

    >>> words("It's 2024年，café!")
    ['it', 's', '2024', '年', 'café']
    """
    return _WORD.findall(text.lower())


def _rouge(predictions: Sequence[str], references: Sequence[str], names: list[str]) -> dict[str, float]:
    scorer = require("rouge_score.rouge_scorer", "text", "the metric ROUGE").RougeScorer(names, tokenizer=SimpleNamespace(tokenize=words))
    rows = [scorer.score(reference, prediction) for prediction, reference in zip(predictions, references)]
    return {name: sum(row[name].fmeasure for row in rows) / len(rows) for name in names}
