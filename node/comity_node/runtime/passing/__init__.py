"""Tasks under way: how tokens are held, worked on, passed on, and looked after by their home."""
