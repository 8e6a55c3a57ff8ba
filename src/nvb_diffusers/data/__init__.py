"""Data: photos and images, records on disk, degradations, datasets and the keys of their samples."""
