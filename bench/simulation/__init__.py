"""What discovery, gossip, routing and quorum cost a node as the number of organizations grows, on a virtual clock."""
