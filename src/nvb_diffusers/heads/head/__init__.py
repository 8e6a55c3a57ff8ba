"""The geometry of one identity: head, hair and what is worn, and the colors of the skin."""
