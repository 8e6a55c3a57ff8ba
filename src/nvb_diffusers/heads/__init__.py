"""Synthetic heads: people who do not exist, from exactly known cameras.

Four rooms, each of which imports those before it: `mesh` (what all heads share), `person` (what is drawn, as values),
`head` (one person's geometry), `picture` (light and pixels). `write`, `datasheet` and `cli` stand above them.
"""
