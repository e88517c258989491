"""The harness's own command with `memtx` among its models: `python -m memtx.evaluate.harness`.

Releases of lm_eval that read the entry points `lm_eval.models` know `memtx` without it.
"""

from lm_eval.__main__ import cli_evaluate

import memtx.evaluate.harness  # noqa: F401 - registers the model

if __name__ == "__main__":
    cli_evaluate()
