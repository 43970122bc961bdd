"""Tables of the audit log and its witnesses."""

from __future__ import annotations

from typing import Final

#: Since version 2. The log, its head and its signed checkpoints.
AUDIT: Final = """
CREATE TABLE audit_entries (
  position INTEGER PRIMARY KEY,
  entry BLOB NOT NULL,
  hash BLOB NOT NULL
) STRICT;

-- One row: the size of the tree and its compact range, so that the head is known without reading the entries.
CREATE TABLE audit_head (
  id INTEGER PRIMARY KEY CHECK (id = 0),
  size INTEGER NOT NULL,
  peaks BLOB NOT NULL,
  last_hash BLOB NOT NULL
) STRICT;

CREATE TABLE audit_checkpoints (
  size INTEGER PRIMARY KEY,
  note TEXT NOT NULL,
  created_ms INTEGER NOT NULL
) STRICT;
"""

#: Added in version 4. Roots of full subtrees of the audit log (heights 8, 16, 24, ...), so that a proof reads little;
#: the cosignatures that others gave for its checkpoints; and the last head of each log that this node cosigned.
WITNESSES: Final = """
CREATE TABLE audit_subtrees (
  height INTEGER NOT NULL CHECK (height > 0 AND height % 8 = 0),
  place INTEGER NOT NULL CHECK (place >= 0),
  hash BLOB NOT NULL CHECK (length(hash) = 32),
  PRIMARY KEY (height, place)
) STRICT, WITHOUT ROWID;

CREATE TABLE audit_cosignatures (
  size INTEGER NOT NULL,
  witness TEXT NOT NULL,
  public_key BLOB NOT NULL CHECK (length(public_key) = 32),
  line TEXT NOT NULL,
  PRIMARY KEY (size, witness)
) STRICT, WITHOUT ROWID;
CREATE INDEX audit_cosignatures_by_witness ON audit_cosignatures (witness, size);

CREATE TABLE witness_heads (
  origin TEXT PRIMARY KEY,
  organization TEXT NOT NULL,
  size INTEGER NOT NULL,
  note TEXT NOT NULL,
  cosigned_ms INTEGER NOT NULL,
  contradictions INTEGER NOT NULL CHECK (contradictions >= 0)
) STRICT, WITHOUT ROWID;
CREATE INDEX witness_heads_by_organization ON witness_heads (organization);
"""
