"""What may leave, to whom, for what purpose, in which form: model, loader, engine, obligations."""
