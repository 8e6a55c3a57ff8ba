"""Synthetic heads: people who do not exist, from exactly known cameras."""
