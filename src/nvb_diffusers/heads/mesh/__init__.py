"""The mesh that all heads share, the map of its skin, and surfaces made of grids of points."""
