"""How facts are taught: rows of background, groups of parameters."""

import torch

from factories.qwen_adapter import memory_for_tiny
from factories.teaching import background_rows, memory_groups
from factories.tiny_base import tiny_qwen
from memtx.data import FactRows, TextRows
from memtx.train.groups import check_partition
from tests.train import tiny

DOCUMENTS = tiny.DOCUMENTS * 4


def test_without_facts_the_background_is_text():
    tokenizer = tiny.byte_tokenizer(crosses_words=False)
    text = TextRows(documents=DOCUMENTS, tokenizer=tokenizer, length=8)
    rows = background_rows(documents=DOCUMENTS, keep=[], tokenizer=tokenizer, length=8)
    assert rows == [text[number] for number in range(len(text))]


def test_one_row_in_four_is_a_fact_to_keep():
    tokenizer = tiny.byte_tokenizer(crosses_words=False)
    keep = tiny.FACTS[:2]
    text = background_rows(documents=DOCUMENTS, keep=[], tokenizer=tokenizer, length=8)
    rows = background_rows(documents=DOCUMENTS, keep=keep, tokenizer=tokenizer, length=8)
    assert rows[: len(text)] == text
    kept = FactRows(facts=keep, tokenizer=tokenizer)
    assert rows[len(text) :] == [kept[number % 2] for number in range(len(text) // 3)]


def test_bank_and_reading_are_the_whole_memory():
    with torch.device("meta"):
        adapter = memory_for_tiny(tiny_qwen(end_token=0))
    groups = memory_groups(adapter, learning_rate=1e-3)
    assert [group.name for group in groups] == ["bank", "reading"]
    check_partition(model=adapter, groups=groups)
    sizes = [sum(p.numel() for p in group.parameters()) for group in groups]
    assert sizes == [32_768, 262_656]
    assert {group.learning_rate for group in groups} == {1e-3}
