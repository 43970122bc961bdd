"""What a runtime without an orchestrator costs and gains: the honest grid, the ceiling, and many tasks in flight."""
