"""Tasks, negotiation, review, routing and reliability: the node's behaviour over time."""
