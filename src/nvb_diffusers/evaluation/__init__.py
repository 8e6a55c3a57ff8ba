"""Measuring a pipeline on held-out identities."""
