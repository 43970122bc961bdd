"""The comity command."""
