"""Batches of new rows, let in or held up: read, compared with trusted rows, answered, checked."""
