"""What the rules allow by name. An entry that nothing uses any more fails the tests.

Keys are `path:Class.method`, or `path` alone where a rule looks at whole files.
"""

from tests.rules.source import Table

# Arguments that may be None by default: absence changes behaviour at a user's entry point.
ENTRY_POINTS: Table = {
    "src/memtx/adapters/adapter.py:MemoryAdapter.forward": [
        "input_ids",
        "attention_mask",
        "position_ids",
        "labels",
    ],
    "src/memtx/adapters/adapter.py:MemoryAdapter.gradient_checkpointing_enable": [
        "gradient_checkpointing_kwargs"
    ],
    "src/memtx/data/facts.py:read_facts": ["num_facts"],
    "src/memtx/spec/describe.py:build": ["base"],
}

# *args and **kwargs that pass a third party's call through.
PASS_THROUGH: Table = {
    "src/memtx/adapters/adapter.py:MemoryAdapter.forward": ["kwargs"],
    "src/memtx/adapters/adapter.py:MemoryAdapter.generate": ["args", "kwargs"],
}

# Constructor parameters that are positional because their source writes them so.
POSITIONAL: Table = {}

# Base classes beside nn.Module, Protocol, Enum, NamedTuple and errors.
INHERITANCE: Table = {}

# Heavy libraries imported when a module of src loads.
HEAVY_IMPORTS: Table = {}

# Files that may name something outside of the repository, and what.
OUTSIDE: Table = {".ci/run": ["a folder outside of the repository"]}
