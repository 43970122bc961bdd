"""The Comity node: an organization's daemon."""
