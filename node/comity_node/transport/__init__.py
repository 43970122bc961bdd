"""Encrypted byte streams between nodes: libp2p, and an in-memory twin for tests."""
