"""Measurements: each script writes `NAME.json`. A package, so that no installed one hides it."""
