"""The things that a run does, one effect each, every one safe to repeat."""
