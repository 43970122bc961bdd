"""Stubs that are made from proto/comity_node/p2p/v1."""
