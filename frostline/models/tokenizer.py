"""Tokenizers for text models from zero: a vocabulary made from the training rows alone, as a Hugging Face fast tokenizer.

``word``       words and punctuation marks; Chinese characters one by one, since no spaces part Chinese words
``char``       single characters
``bpe``        pairs of neighbouring symbols merged by frequency (Sennrich et al., "Neural machine translation of rare words with
               subword units", 2016), starting from bytes, so that no text is ever unknown; runs of Chinese characters merge to
               words of their own
``wordpiece``  words cut into their longest known pieces, the later ones marked ## (Schuster & Nakajima, "Japanese and Korean voice
               search", 2012)
``unigram``    the pieces that make the training text most likely, each on its own (Kudo, "Subword regularization", 2018)

What frames a text depends on what the network is for. An **encoder** reads [CLS] first, which gives an empty text one token
and ``pool: cls`` its position, and its text is normalised (NFKC, and lower case for word, char and wordpiece), so that
full-width and half-width forms are the same. A **causal** model and a **seq2seq** one also write text, so nothing is
normalised, and bpe gives every text back as it was. A causal model's texts get no token of their own: templates and
documents place <|endoftext|>, <|im_start|> and <|im_end|>. A seq2seq text ends in [EOS]; source and target share the vocabulary.

All give the padding token the id 0 and the unknown one 1. The result is a function of the texts and their order, which the
library's own trainers of wordpiece and unigram do not promise (they walk through hash tables). So wordpiece takes the pieces
that a bpe of characters cuts the words into, by their frequency; and unigram keeps the library's pieces but not its scores:
those are counted again, by two rounds of best segmentation from the pieces' frequencies.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from frostline.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Purpose = Literal["encoder", "causal", "seq2seq"]

SPECIAL: dict[str, tuple[str, ...]] = {
    "encoder": ("[PAD]", "[UNK]", "[CLS]"),
    "causal": ("[PAD]", "[UNK]", "<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    "seq2seq": ("[PAD]", "[UNK]", "[BOS]", "[EOS]"),
}
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The chat template of models from zero."""
_BYTES = 256
_EVERY_CHARACTER = r"[\s\S]"
_SCORE_ROUNDS = 2


def train_tokenizer(
    texts: Iterable[str], kind: str, vocabulary: int, purpose: Purpose = "encoder", *, chat: bool = False
) -> PreTrainedTokenizerFast:
    """A tokenizer of at most ``vocabulary`` entries. Raises ModelError for a kind or a size that cannot be.

    ``chat``: with the template :data:`CHATML`, whose <|im_end|> is then the end token.
    """
    makers = {"word": _word, "char": _char, "bpe": _bpe, "wordpiece": _wordpiece, "unigram": _unigram}
    if kind not in makers:
        raise ModelError(f"model.tokenizer got {kind!r}, expected one of {', '.join(makers)}, as in model.tokenizer=bpe")
    special = SPECIAL[purpose]
    least = len(special) + (_BYTES if kind == "bpe" else 1)
    if vocabulary < least:
        raise ModelError(f"model.vocabulary got {vocabulary!r}, expected at least {least} for {kind!r}, as in model.vocabulary=16000")
    texts = list(texts)
    tokenizer, trainer = makers[kind](purpose == "encoder", vocab_size=vocabulary, special_tokens=list(special), show_progress=False)
    _train(tokenizer, trainer, texts, kind, vocabulary)
    if kind == "wordpiece":
        _cut_into_pieces(tokenizer, _words(tokenizer, texts), special, vocabulary)
    elif kind == "unigram":
        _score_again(tokenizer, _words(tokenizer, texts), special)
    if tokenizer.get_vocab_size() == len(special):
        raise ModelError(
            "the training split holds no text to make a vocabulary from (vocabulary 0, expected at least 1 token). Check data.input_column"
        )
    return _framed(tokenizer, purpose, chat)


def _train(tokenizer: Any, trainer: Any, texts: Iterable[str], kind: str, vocabulary: int) -> None:
    try:
        tokenizer.train_from_iterator(texts, trainer)
    except Exception as error:  # the library has one class for all its errors
        if kind != "unigram":
            raise
        raise ModelError(
            f"model.tokenizer got 'unigram' with model.vocabulary {vocabulary!r}, which the training rows cannot fill or fit ({error}). "
            "Choose another size, or model.tokenizer=bpe"
        ) from error


def _framed(tokenizer: Any, purpose: Purpose, chat: bool) -> PreTrainedTokenizerFast:
    """With the special tokens that the purpose has, and what a text gets before and behind it."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    special = {name: index for index, name in enumerate(SPECIAL[purpose])}
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    if purpose == "encoder":
        named["cls_token"] = "[CLS]"
        tokenizer.post_processor = TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", special["[CLS]"])])
    elif purpose == "seq2seq":
        named |= {"bos_token": "[BOS]", "eos_token": "[EOS]"}
        tokenizer.post_processor = TemplateProcessing(single="$A [EOS]", special_tokens=[("[EOS]", special["[EOS]"])])
    else:
        named["eos_token"] = "<|im_end|>" if chat else "<|endoftext|>"
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **named,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
    if chat:
        made.chat_template = CHATML
    return made


def _word(normalise: bool, **options: Any) -> tuple[Any, Any]:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordLevel({}, unk_token="[UNK]"))
    tokenizer.normalizer = _spaced(normalise)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer, trainers.WordLevelTrainer(**options)


def _wordpiece(normalise: bool, **options: Any) -> tuple[Any, Any]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())  # becomes a WordPiece model when its pieces are known
    tokenizer.normalizer = _spaced(normalise)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return tokenizer, trainers.BpeTrainer(min_frequency=2, **options)


def _spaced(normalise: bool) -> Any:
    """Spaces around Chinese characters; accents are kept, for they tell words apart in many languages."""
    from tokenizers import normalizers

    spaces = normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=False, lowercase=normalise)
    return normalizers.Sequence([normalizers.NFKC(), spaces]) if normalise else spaces


def _char(normalise: bool, **options: Any) -> tuple[Any, Any]:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordLevel({}, unk_token="[UNK]"))
    if normalise:
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
        )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_EVERY_CHARACTER), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer, trainers.WordLevelTrainer(**options)


def _bpe(normalise: bool, **options: Any) -> tuple[Any, Any]:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    if normalise:
        tokenizer.normalizer = normalizers.NFKC()
    # A space put before the text would be one more character of it when it is written again
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=normalise)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, trainers.BpeTrainer(initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), min_frequency=2, **options)


def _unigram(normalise: bool, **options: Any) -> tuple[Any, Any]:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    if normalise:
        tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer, trainers.UnigramTrainer(unk_token="[UNK]", **options)


def _words(tokenizer: Any, texts: Iterable[str]) -> Counter[str]:
    """How often each word stands in the texts, as the model will see it; in the order of the texts."""
    counts: Counter[str] = Counter()
    for text in texts:
        if tokenizer.normalizer is not None:
            text = tokenizer.normalizer.normalize_str(text)
        counts.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text))
    return counts


def _cut_into_pieces(tokenizer: Any, words: Counter[str], special: tuple[str, ...], vocabulary: int) -> None:
    """The WordPiece model of the pieces that the trained BPE cuts the words into, the most frequent ones first."""
    from tokenizers import models

    counts: Counter[str] = Counter()
    for word, count in words.items():
        pieces = [token.value for token in tokenizer.model.tokenize(word)]
        for piece in (*pieces[:1], *(f"##{piece}" for piece in pieces[1:])):
            counts[piece] += count
        counts.update(form for character in word for form in (character, f"##{character}"))  # so that new words can be spelled
    kept = sorted(counts, key=lambda piece: (-counts[piece], piece))[: vocabulary - len(special)]
    names = dict.fromkeys((*special, *kept))
    tokenizer.model = models.WordPiece({name: index for index, name in enumerate(names)}, unk_token="[UNK]")


def _score_again(tokenizer: Any, words: Counter[str], special: tuple[str, ...]) -> None:
    """The trained pieces with scores that do not depend on the order in which the trainer met the words."""
    from tokenizers import models

    pieces = set(tokenizer.get_vocab()) - set(special)
    longest = max(map(len, pieces), default=0)
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for start in range(len(word)):
            for end in range(start + 1, min(len(word), start + longest) + 1):
                if word[start:end] in pieces:
                    counts[word[start:end]] += count
    for _ in range(_SCORE_ROUNDS):
        tokenizer.model = models.Unigram(_scored(counts, pieces, special), unk_id=special.index("[UNK]"))
        counts = Counter()
        for word, count in words.items():
            for token in tokenizer.model.tokenize(word):
                counts[token.value] += count
    tokenizer.model = models.Unigram(_scored(counts, pieces, special), unk_id=special.index("[UNK]"))


def _scored(counts: Counter[str], pieces: set[str], special: tuple[str, ...]) -> list[tuple[str, float]]:
    """Logarithms of the pieces' shares, the largest first; a piece that no word needs any more counts as half of one."""
    total = sum(counts.values()) or 1
    scores = {piece: math.log((counts[piece] or 0.5) / total) for piece in pieces}
    return [(name, 0.0) for name in special] + sorted(scores.items(), key=lambda item: (-item[1], item[0]))
