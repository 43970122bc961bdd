"""The local control API (gRPC): clients and workers of the node's own organization."""
