"""The page `nvb-face app`: drop a photo, turn the head (extra `[app]`)."""
