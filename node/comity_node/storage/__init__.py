"""The node's durable state in one SQLite database: journal, records, audit log."""
