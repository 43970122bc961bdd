"""Tables of the work under way: workflows and what was agreed, tasks and reviews, what comes and goes."""

from __future__ import annotations

from typing import Final

#: Since version 2. What the node keeps for itself, by name.
META: Final = """
CREATE TABLE meta (
  key TEXT PRIMARY KEY,
  value BLOB NOT NULL
) STRICT, WITHOUT ROWID;
"""

#: Since version 2. Workflows, agreements, tasks and their reviews.
WORK: Final = """
CREATE TABLE workflows (
  workflow_id TEXT PRIMARY KEY,
  document BLOB NOT NULL,
  state TEXT NOT NULL,
  reason TEXT NOT NULL,
  agreement_digest BLOB,
  created_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE workflow_steps (
  workflow_id TEXT NOT NULL REFERENCES workflows,
  ordinal INTEGER NOT NULL,
  at_ms INTEGER NOT NULL,
  organization TEXT NOT NULL,
  step TEXT NOT NULL,
  detail TEXT NOT NULL,
  PRIMARY KEY (workflow_id, ordinal)
) STRICT, WITHOUT ROWID;

CREATE TABLE agreements (
  digest BLOB PRIMARY KEY CHECK (length(digest) = 32),
  agreement BLOB NOT NULL,
  initiator TEXT NOT NULL,
  purpose TEXT NOT NULL,
  dataset TEXT NOT NULL,
  expires_ms INTEGER NOT NULL,
  state TEXT NOT NULL,
  created_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE tasks (
  task_id BLOB PRIMARY KEY CHECK (length(task_id) = 16),
  agreement_digest BLOB NOT NULL REFERENCES agreements,
  workflow_id TEXT NOT NULL,
  batch_id BLOB NOT NULL,
  ordinal INTEGER NOT NULL,
  revision INTEGER NOT NULL CHECK (revision >= 0),
  state TEXT NOT NULL,
  record BLOB NOT NULL,
  record_digest BLOB NOT NULL,
  hops BLOB NOT NULL,
  reason TEXT NOT NULL,
  rules TEXT NOT NULL,
  feedback TEXT NOT NULL,
  updated_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX tasks_by_agreement ON tasks (agreement_digest, state, updated_ms);
CREATE INDEX tasks_by_batch ON tasks (batch_id, ordinal);

CREATE TABLE assignments (
  batch_id BLOB NOT NULL,
  revision INTEGER NOT NULL,
  organization TEXT NOT NULL,
  state TEXT NOT NULL,
  offered_ms INTEGER NOT NULL,
  lease_until_ms INTEGER NOT NULL,
  PRIMARY KEY (batch_id, revision, organization)
) STRICT, WITHOUT ROWID;

CREATE TABLE votes (
  task_id BLOB NOT NULL REFERENCES tasks,
  revision INTEGER NOT NULL,
  organization TEXT NOT NULL,
  subject BLOB NOT NULL,
  review BLOB NOT NULL,
  chain BLOB NOT NULL,
  accept INTEGER NOT NULL CHECK (accept IN (0, 1)),
  score INTEGER NOT NULL CHECK (score BETWEEN 0 AND 10000),
  received_ms INTEGER NOT NULL,
  PRIMARY KEY (task_id, revision, organization)
) STRICT, WITHOUT ROWID;

-- Evidence, so it stays when the task goes: no foreign key.
CREATE TABLE equivocations (
  task_id BLOB NOT NULL,
  revision INTEGER NOT NULL,
  organization TEXT NOT NULL,
  first_review BLOB NOT NULL,
  second_review BLOB NOT NULL,
  chain BLOB NOT NULL,
  received_ms INTEGER NOT NULL,
  PRIMARY KEY (task_id, revision, organization)
) STRICT, WITHOUT ROWID;
"""

#: Since version 2. Offers that came in, and messages that are to leave.
MESSAGES: Final = """
CREATE TABLE inbox (
  digest BLOB PRIMARY KEY CHECK (length(digest) = 32),
  home TEXT NOT NULL,
  batch_id BLOB NOT NULL,
  revision INTEGER NOT NULL,
  peer_id TEXT NOT NULL,
  agreement_digest BLOB NOT NULL,
  offer BLOB NOT NULL,
  received_ms INTEGER NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('held', 'done')),
  lease_until_ms INTEGER NOT NULL,
  reviews BLOB,
  done_ms INTEGER
) STRICT;
CREATE INDEX inbox_by_state ON inbox (state, home, received_ms);

CREATE TABLE reviewed (
  agreement_digest BLOB NOT NULL,
  home TEXT NOT NULL,
  task_id BLOB NOT NULL,
  revision INTEGER NOT NULL,
  record_digest BLOB NOT NULL,
  batch_id BLOB NOT NULL,
  taken_ms INTEGER NOT NULL,
  PRIMARY KEY (agreement_digest, home, task_id, revision)
) STRICT, WITHOUT ROWID;
CREATE INDEX reviewed_by_age ON reviewed (taken_ms);

CREATE TABLE outbox (
  message_id BLOB PRIMARY KEY CHECK (length(message_id) = 16),
  organization TEXT NOT NULL,
  kind TEXT NOT NULL,
  body BLOB NOT NULL,
  dedup_key TEXT NOT NULL UNIQUE,
  state TEXT NOT NULL CHECK (state IN ('pending', 'sent', 'done', 'failed')),
  reason TEXT NOT NULL,
  created_ms INTEGER NOT NULL,
  not_before_ms INTEGER NOT NULL,
  expires_ms INTEGER NOT NULL,
  attempts INTEGER NOT NULL,
  priority INTEGER NOT NULL
) STRICT;
CREATE INDEX outbox_open ON outbox (organization, priority DESC, created_ms) WHERE state IN ('pending', 'sent');
CREATE INDEX outbox_by_expiry ON outbox (expires_ms);
"""

#: Added in version 4. Negotiations under way, what this node has signed (one set of terms for an id), and statements
#: that ended agreements.
NEGOTIATIONS: Final = """
CREATE TABLE negotiations (
  workflow_id TEXT PRIMARY KEY REFERENCES workflows,
  agreement_id TEXT NOT NULL,
  phase TEXT NOT NULL,
  round INTEGER NOT NULL CHECK (round >= 0),
  terms BLOB NOT NULL,
  participants TEXT NOT NULL,
  ends_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE promises (
  agreement_id TEXT PRIMARY KEY,
  initiator TEXT NOT NULL,
  digest BLOB NOT NULL UNIQUE CHECK (length(digest) = 32),
  terms BLOB NOT NULL,
  envelope BLOB NOT NULL,
  chain BLOB NOT NULL,
  replaces BLOB NOT NULL,
  stage TEXT NOT NULL CHECK (stage IN ('signed', 'released', 'concluded')),
  signed_ms INTEGER NOT NULL,
  ends_ms INTEGER NOT NULL,
  asks INTEGER NOT NULL CHECK (asks >= 0),
  ask_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX promises_by_initiator ON promises (initiator, stage, ends_ms);
CREATE INDEX promises_waiting ON promises (ask_ms) WHERE stage <> 'concluded';

CREATE TABLE withdrawals (
  agreement_digest BLOB NOT NULL CHECK (length(agreement_digest) = 32),
  organization TEXT NOT NULL,
  statement BLOB NOT NULL,
  reason TEXT NOT NULL,
  at_ms INTEGER NOT NULL,
  received_ms INTEGER NOT NULL,
  PRIMARY KEY (agreement_digest, organization)
) STRICT, WITHOUT ROWID;
"""
