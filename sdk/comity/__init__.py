"""Comity: signed, policy-checked agents that work across organizations that keep their own laws."""

__version__ = "0.1.0"
