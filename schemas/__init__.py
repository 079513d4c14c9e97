"""What things are: specs, manifests, frames, metrics, SQL and errors; nothing here acts.

This package stays empty, so that `schemas.errors` can be had without pydantic.
"""
