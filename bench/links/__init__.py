"""`make bench-links`: two processes over loopback, ours beside gRPC, stock py-libp2p and js-libp2p."""
