"""Which test covers each command line that README.md and docs show.

Keys are regular expressions that match a whole command line, values are test files. A command of
the documentation that no key matches fails, and so does a key that no command matches.
"""

COMMANDS: dict[str, str] = {
    # The tests themselves; that the targets make their environment only a fresh clone shows.
    r"make test": "tests/rules/test_repository.py",
    # What the whole demo does takes minutes: its parts are tested, and both ways of starting it.
    r"(MEMTX_SEED=1 )?make demo": "tests/train/test_trainer.py",
    r"torchrun --nproc_per_node=\d examples/train_qwen_adapter\.py.*": (
        "tests/train/test_distributed.py"
    ),
    r"python examples/teach_facts\.py BASE FACTS BACKGROUND .*": "tests/evaluate/test_recall.py",
    r'python examples/generate\.py runs/tiny/base runs/tiny/memory ".*"': (
        "tests/generate/test_greedy.py"
    ),
    r"pip install \.": "tests/packaging/test_wheel.py",
    r"memtx factories (list|copy qwen_adapter my_factories)": "tests/test_cli.py",
}
