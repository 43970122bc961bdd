"""What the checks against js-libp2p share: its processes, and nodes of ours that meet them."""
