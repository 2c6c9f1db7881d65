from __future__ import annotations

import pytest

from frostline.data.chat_encoder import chat_rows
from frostline.data.chat_template import render
from frostline.data.show import show_rows
from tests.data.chat_tokenizers import chat_tokenizer
from tests.data.test_chat_encoder import table

ROW = [{"role": "system", "content": "简短"}, {"role": "user", "content": "猫\x1b[2J?"}, {"role": "assistant", "content": "a cat\n是猫"}]


def test_turns_with_roles_counts_and_special_tokens():
    tokenizer = chat_tokenizer("chatml")
    rendered = render(ROW, None, tokenizer)
    assert show_rows([rendered], tokenizer) == "\n".join(
        [
            f"row 0: {len(rendered.ids)} tokens, {sum(rendered.trained)} trained",
            "  system     <|im_start|>system↵简短<|im_end|>↵",
            "  user       <|im_start|>user↵猫\\u001b[2J?<|im_end|>↵",
            "  assistant  <|im_start|>assistant↵⟦a cat↵是猫<|im_end|>⟧↵",
        ]
    )


def test_colour_stands_for_the_brackets():
    tokenizer = chat_tokenizer("chatml")
    shown = show_rows([render(ROW, None, tokenizer)], tokenizer, colour=True)
    assert "⟦" not in shown
    assert "\x1b[30;42ma cat↵是猫<|im_end|>\x1b[0m↵" in shown
    assert "\x1b[2J" not in shown


@pytest.mark.parametrize("name", ["chatml", "llama2", "vicuna"])
def test_rows_with_labels_show_the_same_tokens(name):
    tokenizer = chat_tokenizer(name)
    rows = [ROW, [ROW[1], ROW[2]]]
    by_turn = show_rows([render(row, None, tokenizer) for row in rows], tokenizer)
    flat = show_rows(chat_rows(table(*rows), tokenizer, max_length=500), tokenizer)
    joined = ["".join(line[2 + len("assistant  ") :] for line in block.splitlines()[1:]) for block in by_turn.split("\n\n")]
    assert [block.splitlines()[1].removeprefix("  tokens  ") for block in flat.split("\n\n")] == joined
    assert [block.splitlines()[0] for block in flat.split("\n\n")] == [block.splitlines()[0] for block in by_turn.split("\n\n")]
