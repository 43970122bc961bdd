"""Tables of reviews that withstand liars: scores that are committed to, evidence, and what decays."""

from __future__ import annotations

from typing import Final

#: Added in version 5. Commitments that came to a home, the set that it has fixed, and what a reviewer has sealed.
COMMITMENTS: Final = """
CREATE TABLE commitments (
  batch_id BLOB NOT NULL CHECK (length(batch_id) = 16),
  revision INTEGER NOT NULL CHECK (revision >= 0),
  organization TEXT NOT NULL,
  envelope BLOB NOT NULL,
  chain BLOB NOT NULL,
  received_ms INTEGER NOT NULL,
  in_set INTEGER NOT NULL CHECK (in_set IN (0, 1)),
  PRIMARY KEY (batch_id, revision, organization)
) STRICT, WITHOUT ROWID;

CREATE TABLE commitment_sets (
  batch_id BLOB NOT NULL CHECK (length(batch_id) = 16),
  revision INTEGER NOT NULL CHECK (revision >= 0),
  digest BLOB NOT NULL CHECK (length(digest) = 32),
  fixed_ms INTEGER NOT NULL,
  PRIMARY KEY (batch_id, revision)
) STRICT, WITHOUT ROWID;

CREATE TABLE sealed_reviews (
  digest BLOB PRIMARY KEY CHECK (length(digest) = 32),
  nonce BLOB NOT NULL CHECK (length(nonce) = 32),
  answer TEXT NOT NULL,
  commitment BLOB NOT NULL,
  sealed_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX sealed_reviews_by_time ON sealed_reviews (sealed_ms);
"""

#: Added in version 5. Verified evidence, found here or heard of. It stays when tasks and agreements go.
EVIDENCE: Final = """
CREATE TABLE evidence (
  organization TEXT NOT NULL,
  kind TEXT NOT NULL,
  subject BLOB NOT NULL CHECK (length(subject) = 32),
  proof BLOB NOT NULL,
  signed_ms INTEGER NOT NULL,
  known_ms INTEGER NOT NULL,
  until_ms INTEGER NOT NULL,
  PRIMARY KEY (organization, kind, subject)
) STRICT, WITHOUT ROWID;
CREATE INDEX evidence_by_end ON evidence (until_ms);
"""

#: Added in version 5. When counts of reliability were last brought up to date: they lose weight with time. Those
#: of before begin to when the database is brought to this version.
DECAY: Final = """
CREATE TABLE reliability_times (
  organization TEXT NOT NULL,
  role TEXT NOT NULL,
  at_ms INTEGER NOT NULL,
  PRIMARY KEY (organization, role)
) STRICT, WITHOUT ROWID;
INSERT INTO reliability_times SELECT organization, role, CAST(strftime('%s', 'now') AS INTEGER) * 1000 FROM reliability;
"""

REVIEWING: Final = COMMITMENTS + EVIDENCE + DECAY
