"""Measurements of what a memory learns, and of what it does to the rest."""
