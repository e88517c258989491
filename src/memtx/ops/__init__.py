"""Computations without parameters, each fast path beside its plain reference."""
