"""Two processes: one is killed at a random step, the run goes on, and equals the one left alone."""

import pytest

from tests.train import survival


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["data-parallel", "sharded"])
def test_a_run_that_was_killed_is_the_run_bit_for_bit(tmp_path, kind, bf16):
    survival.require_survival(tmp_path, kind=kind, bf16=bf16, processes=2)
