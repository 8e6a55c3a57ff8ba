"""Light and pixels: what surrounds a head, and how a camera sees it."""
