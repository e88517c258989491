"""A plan that takes seconds: `tiny` of the factories, for a dozen steps of short rows."""

from factories.from_scratch import routed_a_tiny
from factories.streaming import Plan


def plan() -> Plan:
    """Compose a dozen steps, saved every four."""
    return Plan(
        compose=routed_a_tiny,
        vocabulary=2_048,
        row_length=32,
        rows_per_step=4,
        steps=12,
        every=4,
        learning_rate=4e-3,
    )


def larger() -> Plan:
    """Compose one whose stack has no room for the tokenizer's tokens."""
    return Plan(
        compose=routed_a_tiny,
        vocabulary=64,
        row_length=32,
        rows_per_step=4,
        steps=12,
        every=4,
        learning_rate=4e-3,
    )
