"""Flower hooks: certified records into training, signed manifests on updates, a gate before aggregation."""
