"""memtx in lm-evaluation-harness: `lm_eval --model memtx`, and a model object for Python.

Needs `lm_eval`, which the extra `evaluate` installs; nothing else of memtx imports this.
"""

from memtx.evaluate.harness.model import MemtxLM

__all__ = ["MemtxLM"]
