"""Real and made-up questions, as this project and as lm-evaluation-harness read them."""

import json
import re
from pathlib import Path

from memtx.data import Question

PATTERN = re.compile(r"question: (.*?)\n\n(Answer1: .*?)\n\nAnswer format", re.DOTALL)


def arc_easy(data_folder: Path, count: int) -> list[Question]:
    """The first questions of ARC-Easy, taken out of the prompts that they stand in."""
    records = json.loads((data_folder / "choice" / "ARC-Easy-test.json").read_text())
    found = []
    for record in records[:count]:
        match = PATTERN.search(record["instruction"])
        choices = [each.strip() for each in re.split(r"Answer\d: ", match[2]) if each.strip()]
        answer = int(record["answer"].removeprefix("answer")) - 1
        context = f"Question: {match[1]}\nAnswer:"
        found.append(Question(context=context, choices=choices, answer=answer))
    return found


def write_questions(path: Path, questions: list[Question]) -> Path:
    rows = [
        {"question": each.context, "choices": each.choices, "answer": each.answer}
        for each in questions
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_texts(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"page": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def write_tasks(folder: Path, *, questions: Path, texts: Path) -> Path:
    """Tasks of the harness that read local files and nothing else."""
    folder.mkdir()
    (folder / "choices.yaml").write_text(
        f"""
task: memtx_choices
dataset_path: json
dataset_kwargs:
  data_files:
    test: {questions}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - metric: acc
  - metric: acc_norm
  - metric: acc_bytes
""",
        encoding="utf-8",
    )
    (folder / "texts.yaml").write_text(
        f"""
task: memtx_texts
dataset_path: json
dataset_kwargs:
  data_files:
    test: {texts}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{page}}}}"
metric_list:
  - metric: word_perplexity
  - metric: byte_perplexity
  - metric: bits_per_byte
""",
        encoding="utf-8",
    )
    return folder
