"""Running text as documents and as rows."""

import pytest

from memtx.data import TextRows, read_documents
from tests.train import tiny


def test_documents_are_cut_at_the_separator(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n\nOne\nline.\n\n\n \n\nZwei: ü.\n", encoding="utf-8")
    assert read_documents(path, r"\n\s*\n") == ["One\nline.", "Zwei: ü."]
    assert read_documents(str(path), "ü") == ["One\nline.\n\n\n \n\nZwei:", "."]


def test_real_documents(data_folder):
    documents = read_documents(data_folder / "text" / "tinystories.txt", r"\n\s*\n")
    assert len(documents) > 900
    assert all(document == document.strip() != "" for document in documents)


def test_a_file_without_documents_is_refused(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n-\n  -", encoding="utf-8")
    with pytest.raises(ValueError, match="read_documents: .*text.txt', characters=6;"):
        read_documents(path, "-")
    with pytest.raises(FileNotFoundError, match="none.txt"):
        read_documents(tmp_path / "none.txt", "-")


@pytest.mark.parametrize("length", [1, 4, 7])
def test_every_token_stands_once_and_in_order(length):
    tokenizer = tiny.byte_tokenizer(crosses_words=False)
    rows = TextRows(documents=tiny.DOCUMENTS, tokenizer=tokenizer, length=length)
    stream = []
    for document in tiny.DOCUMENTS:
        stream += [*tokenizer(document)["input_ids"], tokenizer.eos_token_id]
    assert len(rows) == len(stream) // length
    assert {len(rows[number]["input_ids"]) for number in range(len(rows))} == {length}
    joined = [token for number in range(len(rows)) for token in rows[number]["input_ids"]]
    assert joined == stream[: len(rows) * length]
    assert all(rows[number]["labels"] == rows[number]["input_ids"] for number in range(len(rows)))


def test_an_end_that_the_tokenizer_sets_stands_once():
    tokenizer = tiny.byte_tokenizer(crosses_words=False)
    wanted = TextRows(documents=tiny.DOCUMENTS, tokenizer=tokenizer, length=7)
    tiny.set_end(tokenizer)
    given = TextRows(documents=tiny.DOCUMENTS, tokenizer=tokenizer, length=7)
    assert [given[n] for n in range(len(given))] == [wanted[n] for n in range(len(wanted))]


def test_without_an_end_token_documents_meet():
    tokenizer = tiny.byte_tokenizer(crosses_words=False)
    tokenizer.eos_token = None
    rows = TextRows(documents=["a", "b"], tokenizer=tokenizer, length=2)
    assert tokenizer.decode(rows[0]["input_ids"]) == "ab"


def test_begin_and_end_tokens_of_the_real_tokenizer(data_folder):
    _, tokenizer = tiny.stories(data_folder)
    rows = TextRows(documents=["Hello", "there"], tokenizer=tokenizer, length=1)
    tokens = [rows[number]["input_ids"][0] for number in range(len(rows))]
    assert tokens == [*tokenizer("Hello")["input_ids"], 2, *tokenizer("there")["input_ids"], 2]
    assert tokens[0] == 1


def test_too_little_text_is_refused():
    tokenizer = tiny.byte_tokenizer(crosses_words=False)
    expected = "fill at least one row of 9 tokens, got tokens=2, documents=1;"
    with pytest.raises(ValueError, match=expected):
        TextRows(documents=["I"], tokenizer=tokenizer, length=9)
    with pytest.raises(ValueError, match="TextRows: length must be .* got length=0;"):
        TextRows(documents=["I"], tokenizer=tokenizer, length=0)


def test_one_text_in_the_place_of_a_list_is_refused():
    tokenizer = tiny.byte_tokenizer(crosses_words=False)
    with pytest.raises(ValueError, match="TextRows: documents must .* documents='It rained.';"):
        TextRows(documents="It rained.", tokenizer=tokenizer, length=2)
