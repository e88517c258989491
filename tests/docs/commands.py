"""Which test covers each command line that README.md and docs show.

Keys are regular expressions that match a whole command line, values are test files. A command of
the documentation that no key matches fails, and so does a key that no command matches.
"""

COMMANDS: dict[str, str] = {
    # The tests themselves; that the targets make their environment only a fresh clone shows.
    r"make test": "tests/rules/test_repository.py",
    # The whole demo takes minutes: its script runs on a lesson of seconds, with both seeds.
    r"(MEMTX_SEED=1 )?make demo": "tests/examples/test_train_qwen_adapter.py",
    r"torchrun --nproc_per_node=\d examples/train_qwen_adapter\.py": (
        "tests/examples/test_train_qwen_adapter.py"
    ),
    # On a base as deep and wide as the real one, from a folder of its name on the hub.
    r"torchrun --nproc_per_node=\d examples/train_qwen_adapter\.py factories\.qwen_adapter:.*": (
        "tests/factories/test_pretrained.py"
    ),
    r"python examples/teach_facts\.py BASE FACTS BACKGROUND .*": (
        "tests/examples/test_teach_facts.py"
    ),
    r'python examples/generate\.py runs/tiny/base runs/tiny/memory ".*"': (
        "tests/examples/test_train_qwen_adapter.py"
    ),
    # On the tiny stacks for a few steps; what the table shows took minutes.
    r"python examples/train_from_scratch\.py.*": "tests/examples/test_train_from_scratch.py",
    # As the one above.
    r"python examples/train_tensor_memory\.py.*": "tests/examples/test_train_tensor_memory.py",
    r"python examples/resume\.py": "tests/examples/test_resume.py",
    # On a plan of a dozen steps.
    r"python examples/pretrain\.py .*": "tests/examples/test_pretrain.py",
    r"python examples/instruct\.py .*": "tests/examples/test_instruct.py",
    # On two GPUs; here on a tiny stack in one process on the CPU.
    r"torchrun --nproc_per_node=2 benchmarks/scaling\.py .*": "tests/benchmarks/test_scaling.py",
    r"python examples/associative_recall\.py.*": "tests/examples/test_associative_recall.py",
    r"pip install \.": "tests/packaging/test_wheel.py",
    r"memtx factories (list|copy qwen_adapter my_factories)": "tests/cli/test_factories.py",
    r"memtx plan (mixture_of_chapters:with_memory|tensor_memory:small .*|llama_adapter:.*)": (
        "tests/cli/test_plan.py"
    ),
    r"memtx learn --base BASE --text chapter\.txt .*": "tests/cli/test_learn.py",
    # A base of random numbers in place of the demo's, and two steps.
    r"\.venv/bin/memtx (ask|inspect|verify) runs/.*|\.venv/bin/memtx learn --base runs/.*": (
        "tests/docs/test_tutorial.py"
    ),
    r"memtx verify memory( --json)?": "tests/spec/test_verify.py",
    # At a size that runs on a CPU.
    r"PYTHONPATH=src:\. python benchmarks/out_of_core\.py --output benchmarks/results": (
        "tests/benchmarks/test_out_of_core.py"
    ),
    r"memtx inspect memory --base BASE .*": "tests/cli/test_inspect.py",
    r"python -m memtx\.evaluate\.harness --model memtx .*": "tests/evaluate/harness/test_model.py",
    # Of docs/cli.md: factories, files and bases there stand for those that the tests make.
    r"memtx plan from_scratch:routed_a_30m .*": "tests/cli/test_plan.py",
    r"(torchrun --nproc_per_node=2 -m )?memtx train .*": "tests/cli/test_train.py",
    r"memtx ask (memory|model) .*": "tests/cli/test_ask.py",
    r"memtx evaluate (memory|model) .*": "tests/cli/test_evaluate.py",
}
