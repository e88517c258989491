"""examples/many_users.py: on the real small Llama, two memories of different facts in one batch."""

import argparse

import pytest
from transformers import AutoModelForCausalLM

from examples.many_users import USERS, run
from memtx import load_adapter
from memtx.data import read_documents

pytestmark = pytest.mark.slow

COUNT = 50
STORIES = r"(?<!\n)\n(?!\n)"


@pytest.fixture(scope="module")
def taught(data_folder, tmp_path_factory):
    """How many facts of each user a row of each memory, and of none, recalled; and where they are.

    The shortest stories are enough of a background; what teaching does to others is measured in
    the tests of teach_facts.
    """
    folder = tmp_path_factory.mktemp("users")
    documents = read_documents(data_folder / "text" / "tinystories.txt", separator=STORIES)
    (folder / "stories.txt").write_text(
        "\n".join(sorted(documents, key=len)[:60]), encoding="utf-8"
    )
    options = argparse.Namespace(
        base=str(data_folder / "models" / "stories260K"),
        facts=str(data_folder / "facts" / "counterfact-1k.json"),
        background=str(folder / "stories.txt"),
        num_facts=COUNT,
        steps=200,
        output=str(folder / "out"),
    )
    return run(options), folder, options


def test_rows_recall_their_own_facts_and_only_those(taught):
    found, _, _ = taught
    for user in USERS:
        assert found[user, user] >= 0.95 * COUNT
        for other in [*(name for name in USERS if name != user), None]:
            assert found[other, user] <= 0.02 * COUNT


def test_each_memory_is_an_artifact_of_its_own(taught):
    _, folder, options = taught
    for user in USERS:
        base = AutoModelForCausalLM.from_pretrained(options.base)
        assert len(load_adapter(folder / "out" / user, base).insertions) == 5
