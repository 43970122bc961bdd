"""Tables of what is known about others, and of what the policy has decided and counted."""

from __future__ import annotations

from typing import Final

#: Since version 2. How reliable others were, and what rules and federations have counted.
COUNTERS: Final = """
CREATE TABLE reliability (
  organization TEXT NOT NULL,
  role TEXT NOT NULL,
  agreed REAL NOT NULL,
  disagreed REAL NOT NULL,
  PRIMARY KEY (organization, role)
) STRICT, WITHOUT ROWID;

CREATE TABLE rate_buckets (
  rule_id TEXT NOT NULL,
  end_ms INTEGER NOT NULL,
  amount INTEGER NOT NULL CHECK (amount > 0),
  PRIMARY KEY (rule_id, end_ms)
) STRICT, WITHOUT ROWID;

CREATE TABLE updates (
  direction TEXT NOT NULL CHECK (direction IN ('released', 'admitted')),
  federation TEXT NOT NULL,
  round INTEGER NOT NULL,
  organization TEXT NOT NULL,
  digest BLOB NOT NULL,
  at_ms INTEGER NOT NULL,
  PRIMARY KEY (direction, federation, round, organization)
) STRICT, WITHOUT ROWID;
"""

#: Added in version 3. Verified revocations of nodes' certificates.
REVOCATIONS: Final = """
CREATE TABLE revocations (
  fingerprint BLOB PRIMARY KEY CHECK (length(fingerprint) = 32),
  organization TEXT NOT NULL,
  issued_ms INTEGER NOT NULL,
  envelope BLOB NOT NULL
) STRICT;
"""

#: Added in version 4. The files of every policy that the node has decided by, compressed.
POLICIES: Final = """
CREATE TABLE policies (
  digest BLOB PRIMARY KEY CHECK (length(digest) = 32),
  source TEXT NOT NULL,
  files BLOB NOT NULL
) STRICT;
"""

#: Added in version 4. What the gate remembers: requests that were decided on, quotas and privacy budgets that are used
#: up, what a person has to approve, notices, and until when offers may be kept.
ENFORCEMENT: Final = """
CREATE TABLE request_shapes (
  digest BLOB PRIMARY KEY CHECK (length(digest) = 32),
  organization TEXT NOT NULL,
  shape BLOB NOT NULL
) STRICT;
CREATE INDEX request_shapes_by_organization ON request_shapes (organization);

CREATE TABLE quota_used (
  rule_id TEXT PRIMARY KEY,
  used INTEGER NOT NULL CHECK (used >= 0)
) STRICT, WITHOUT ROWID;

-- Epsilons are whole millionths, so that sums are exact.
CREATE TABLE epsilon_spent (
  scope TEXT PRIMARY KEY,
  spent INTEGER NOT NULL CHECK (spent >= 0)
) STRICT, WITHOUT ROWID;

-- What was paid for: the same bytes are paid for once.
CREATE TABLE epsilon_releases (
  scope TEXT NOT NULL,
  subject BLOB NOT NULL CHECK (length(subject) = 32),
  cost INTEGER NOT NULL CHECK (cost > 0),
  PRIMARY KEY (scope, subject)
) STRICT, WITHOUT ROWID;

CREATE TABLE approvals (
  approval_id BLOB PRIMARY KEY CHECK (length(approval_id) = 16),
  rule_id TEXT NOT NULL,
  action TEXT NOT NULL,
  organization TEXT NOT NULL,
  scope BLOB NOT NULL,
  request BLOB NOT NULL,
  purpose TEXT NOT NULL,
  dataset TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('pending', 'approved', 'denied', 'expired')),
  reason TEXT NOT NULL,
  asked_ms INTEGER NOT NULL,
  deadline_ms INTEGER NOT NULL,
  decided_ms INTEGER,
  UNIQUE (rule_id, action, organization, scope)
) STRICT;
CREATE INDEX approvals_by_state ON approvals (state, organization);

CREATE TABLE notices (
  sequence INTEGER PRIMARY KEY AUTOINCREMENT,
  at_ms INTEGER NOT NULL,
  persons TEXT NOT NULL,
  rules TEXT NOT NULL,
  action TEXT NOT NULL,
  organization TEXT NOT NULL,
  purpose TEXT NOT NULL,
  dataset TEXT NOT NULL,
  subject BLOB NOT NULL,
  agreement_digest BLOB NOT NULL,
  times INTEGER NOT NULL CHECK (times > 0)
) STRICT;

CREATE TABLE offer_retention (
  digest BLOB PRIMARY KEY CHECK (length(digest) = 32),
  retain_until_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX offer_retention_by_time ON offer_retention (retain_until_ms);
"""
