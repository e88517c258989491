"""Layouts of conversations, and encoders of rows."""

import json
import re

import pytest
from datasets import Dataset

from memtx.data import (
    ChatEncoder,
    Instruction,
    Messages,
    PromptCompletion,
    TextEncoder,
    TokenizerTemplate,
    TokensEncoder,
)
from tests.data import chats
from tests.train import tiny

INSTRUCTION = Instruction(instruction="instruction", input="input", output="output")
QUESTION = PromptCompletion(prompt="question", completion="answer")
ASKED = "Is 2 + 2 four?"
SAID = "Yes, it is."


@pytest.mark.parametrize(
    ("layout", "row"),
    [
        (Messages(field="messages"), {"messages": chats.ONE}),
        (
            Messages(field="messages"),
            {"messages": {"role": ["user", "assistant"], "content": [ASKED, SAID]}},
        ),
        (QUESTION, {"question": ASKED, "answer": SAID}),
        (QUESTION, {"question": chats.ONE[:1], "answer": chats.ONE[1:]}),
        (INSTRUCTION, {"instruction": ASKED, "input": "", "output": SAID}),
        (INSTRUCTION, {"instruction": ASKED, "input": None, "output": SAID}),
        (
            Instruction(instruction="instruction", input=None, output="output"),
            {"instruction": ASKED, "output": SAID},
        ),
    ],
)
def test_every_layout_makes_the_hand_marked_conversation(layout, row):
    tokenizer = chats.tokenizer_with(chats.CHATML)
    encoder = ChatEncoder(layout=layout, template=TokenizerTemplate(tokenizer=tokenizer))
    assert chats.marked(tokenizer, encoder(row)) == chats.ONE_AS_CHATML


def test_an_input_stands_behind_the_instruction():
    said = INSTRUCTION.messages({"instruction": "Add.", "input": "2, 2", "output": "4"})
    assert said[0] == {"role": "user", "content": "Add.\n\n2, 2"}


@pytest.mark.parametrize(
    ("layout", "row", "message"),
    [
        (QUESTION, {"q": "a"}, "PromptCompletion: .* got field='question', fields=\\['q'\\];"),
        (QUESTION, {"question": "a", "answer": " "}, "'answer' .* hold text, got answer=' ';"),
        (QUESTION, {"question": 3, "answer": "a"}, "got question=3; leave such rows out"),
        (QUESTION, {"question": "a", "answer": chats.ONE[:1]}, "got roles=\\['user', 'user'\\];"),
        (INSTRUCTION, {"instruction": "a", "output": "b"}, "Instruction: .* got field='input'"),
        (INSTRUCTION, {"instruction": "a", "input": 4, "output": "b"}, "got input=4;"),
        (Messages(field="m"), {"m": "hello"}, "Messages: messages must be .* got messages='hello'"),
        (Messages(field="m"), {"m": [{"role": "user"}]}, "got messages=\\[{'role': 'user'}\\];"),
        (Messages(field="m"), {"m": []}, "an answer of the assistant, got roles=\\[\\];"),
        (
            Messages(field="m"),
            {"m": [chats.ONE[0], {"role": "assistant", "content": "  "}]},
            "an answer of the assistant, got roles=\\['user', 'assistant'\\]; leave such rows out",
        ),
    ],
)
def test_rows_without_a_conversation_are_refused(layout, row, message):
    with pytest.raises(ValueError, match=message):
        layout.messages(row)


def test_text_has_its_end_and_every_token_is_a_label():
    tokenizer = tiny.byte_tokenizer(crosses_words=False)
    document = TextEncoder(tokenizer=tokenizer, field="text")({"text": "It rained.", "id": 3})
    assert tokenizer.decode(document["input_ids"]) == "It rained.<end>"
    assert document["labels"] == document["input_ids"]


@pytest.mark.parametrize("text", ["", " \n", None, 4])
def test_rows_without_text_are_refused(text):
    encoder = TextEncoder(tokenizer=tiny.byte_tokenizer(crosses_words=False), field="text")
    expected = re.escape(f"hold text, got text={text!r};")
    with pytest.raises(ValueError, match=expected):
        encoder({"text": text})
    with pytest.raises(ValueError, match="TextEncoder: .* got field='text', fields=\\['words'\\];"):
        encoder({"words": text})


def test_tokens_made_ahead():
    row = {"ids": [5, 6], "wanted": [-100, 6]}
    assert TokensEncoder(input_ids="ids", labels="wanted")(row) == {
        "input_ids": [5, 6],
        "labels": [-100, 6],
    }
    with pytest.raises(ValueError, match="TokensEncoder: .* got ids=2, wanted=1;"):
        TokensEncoder(input_ids="ids", labels="wanted")({"ids": [5, 6], "wanted": [6]})
    with pytest.raises(ValueError, match="TokensEncoder: .* got ids=0; leave empty rows out"):
        TokensEncoder(input_ids="ids", labels=None)({"ids": []})


@pytest.mark.parametrize("ids", [[1.5, 2], ["1"], [True], [[1]], "12", None, 3])
def test_tokens_that_are_no_integers_are_refused(ids):
    with pytest.raises(ValueError, match="^TokensEncoder: the field 'ids' .* integers, got ids="):
        TokensEncoder(input_ids="ids", labels=None)({"ids": ids})


def test_tokens_of_a_dataset_with_a_format_become_plain_numbers():
    # The position of a stream holds documents, and is written as JSON.
    dataset = Dataset.from_list([{"ids": [5, 6]}])
    for kind in ("torch", "numpy"):
        document = TokensEncoder(input_ids="ids", labels=None)(dataset.with_format(kind)[0])
        assert json.loads(json.dumps(document)) == {"input_ids": [5, 6], "labels": [5, 6]}
