"""Rows that must go: what that should change, models that forget them, and the certificate."""
