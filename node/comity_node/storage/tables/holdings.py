"""Tables of the data itself: certified records and whole tables."""

from __future__ import annotations

from typing import Final

#: Since version 2. Certified records.
RECORDS: Final = """
-- AUTOINCREMENT: a cursor never meets a number twice, whatever is deleted. A task's id is its author's to choose, so it
-- is unique only together with the author.
CREATE TABLE records (
  sequence INTEGER PRIMARY KEY AUTOINCREMENT,
  task_id BLOB NOT NULL CHECK (length(task_id) = 16),
  agreement_digest BLOB NOT NULL,
  dataset TEXT NOT NULL,
  author TEXT NOT NULL,
  record BLOB NOT NULL,
  record_digest BLOB NOT NULL,
  score INTEGER NOT NULL CHECK (score BETWEEN 0 AND 10000),
  certificate BLOB NOT NULL,
  provenance BLOB NOT NULL,
  stored_ms INTEGER NOT NULL,
  retain_until_ms INTEGER,
  UNIQUE (task_id, author)
) STRICT;
CREATE INDEX records_by_dataset ON records (dataset, author, sequence);
CREATE INDEX records_by_agreement ON records (agreement_digest, sequence);
CREATE INDEX records_by_retention ON records (retain_until_ms) WHERE retain_until_ms IS NOT NULL;
"""

#: Added in version 3. Transfers of whole tables; what has to be done about them is in `comity_node.storage.bulk`.
BULK: Final = """
CREATE TABLE bulk (
  transfer_id BLOB PRIMARY KEY CHECK (length(transfer_id) = 32),
  direction TEXT NOT NULL CHECK (direction IN ('out', 'in')),
  organization TEXT NOT NULL,
  dataset TEXT NOT NULL,
  kind TEXT NOT NULL,
  purpose TEXT NOT NULL,
  agreement_digest BLOB NOT NULL,
  root BLOB NOT NULL CHECK (length(root) = 32),
  row_count INTEGER NOT NULL CHECK (row_count >= 0),
  byte_count INTEGER NOT NULL CHECK (byte_count > 0),
  manifest BLOB NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('open', 'done', 'failed', 'deleted')),
  stored_chunks INTEGER NOT NULL CHECK (stored_chunks >= 0),
  receipt BLOB NOT NULL,
  reason TEXT NOT NULL,
  created_ms INTEGER NOT NULL,
  updated_ms INTEGER NOT NULL,
  expires_ms INTEGER NOT NULL,
  retain_until_ms INTEGER
) STRICT;
CREATE INDEX bulk_by_state ON bulk (state, direction, organization);
CREATE INDEX bulk_by_age ON bulk (created_ms);
CREATE INDEX bulk_by_root ON bulk (root);
"""
