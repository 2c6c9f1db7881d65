"""Tokenizers for text models from zero: a vocabulary made from the training rows alone, as a Hugging Face fast tokenizer.

``word``  words and punctuation marks in lower case; Chinese characters one by one, since no spaces part Chinese words
``char``  single characters in lower case
``bpe``   pairs of neighbouring symbols merged by frequency (Sennrich et al., "Neural machine translation of rare words with
          subword units", 2016), starting from bytes, so that no text is ever unknown; runs of Chinese characters merge to
          words of their own

All give [PAD] the id 0, [UNK] 1 and [CLS] 2, and put [CLS] first, which gives an empty text one token and ``pool: cls`` its
position. Text is normalised (NFKC), so that full-width and half-width forms are the same. The result is a function of the
texts and their order.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from frostline.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL = ("[PAD]", "[UNK]", "[CLS]")
_BYTES = 256


def train_tokenizer(texts: Iterable[str], kind: str, vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer of at most ``vocabulary`` entries. Raises ModelError for a kind or a size that cannot be."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    makers = {"word": _word, "char": _char, "bpe": _bpe}
    if kind not in makers:
        raise ModelError(f"model.tokenizer got {kind!r}, expected one of {', '.join(makers)}, as in model.tokenizer=bpe")
    least = len(SPECIAL) + (_BYTES if kind == "bpe" else 1)
    if vocabulary < least:
        raise ModelError(f"model.vocabulary got {vocabulary!r}, expected at least {least} for {kind!r}, as in model.vocabulary=16000")
    tokenizer: Tokenizer
    tokenizer, trainer = makers[kind](vocabulary)
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() == len(SPECIAL):
        raise ModelError(
            "the training split holds no text to make a vocabulary from (vocabulary 0, expected at least 1 token). Check data.input_column"
        )
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", SPECIAL.index("[CLS]"))])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def _word(vocabulary: int) -> tuple[Any, Any]:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordLevel({}, unk_token="[UNK]"))
    # BertNormalizer puts spaces around Chinese characters; accents are kept, for they tell words apart in many languages
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=False, lowercase=True)]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer, trainers.WordLevelTrainer(vocab_size=vocabulary, special_tokens=list(SPECIAL), show_progress=False)


def _char(vocabulary: int) -> tuple[Any, Any]:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordLevel({}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")  # no line break is left for the dot to miss
    tokenizer.decoder = decoders.Fuse()
    return tokenizer, trainers.WordLevelTrainer(vocab_size=vocabulary, special_tokens=list(SPECIAL), show_progress=False)


def _bpe(vocabulary: int) -> tuple[Any, Any]:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(SPECIAL), initial_alphabet=alphabet, min_frequency=2, show_progress=False
    )
    return tokenizer, trainer
