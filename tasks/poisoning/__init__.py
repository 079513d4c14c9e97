"""Attacks on the training rows: moves, models of them, what they do, and who would notice."""
