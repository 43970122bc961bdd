"""Tables of tasks under way: what is held for others, what is to leave, and the home's own."""

from __future__ import annotations

from typing import Final

#: Added in version 5. A token's body is a `comity.v1.Token`.
PASSING: Final = """
CREATE TABLE tokens_held (
  home TEXT NOT NULL,
  task_id BLOB NOT NULL CHECK (length(task_id) = 16),
  attempt INTEGER NOT NULL,
  sequence INTEGER NOT NULL,
  agreement_digest BLOB NOT NULL CHECK (length(agreement_digest) = 32),
  sender TEXT NOT NULL,
  body BLOB NOT NULL,
  PRIMARY KEY (home, task_id, attempt, sequence)
) STRICT, WITHOUT ROWID;

CREATE TABLE tokens_out (
  home TEXT NOT NULL,
  task_id BLOB NOT NULL CHECK (length(task_id) = 16),
  attempt INTEGER NOT NULL,
  sequence INTEGER NOT NULL,
  agreement_digest BLOB NOT NULL CHECK (length(agreement_digest) = 32),
  to_organization TEXT NOT NULL,
  role TEXT NOT NULL,
  passed INTEGER NOT NULL CHECK (passed IN (0, 1)),
  body BLOB NOT NULL,
  PRIMARY KEY (home, task_id, attempt, sequence)
) STRICT, WITHOUT ROWID;

-- The last visit of each task of another home, until its deadline.
CREATE TABLE tokens_seen (
  home TEXT NOT NULL,
  task_id BLOB NOT NULL,
  attempt INTEGER NOT NULL,
  sequence INTEGER NOT NULL,
  deadline_ms INTEGER NOT NULL,
  PRIMARY KEY (home, task_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX tokens_seen_by_deadline ON tokens_seen (deadline_ms);

CREATE TABLE journeys (
  task_id BLOB PRIMARY KEY CHECK (length(task_id) = 16),
  agreement_digest BLOB NOT NULL CHECK (length(agreement_digest) = 32),
  attempt INTEGER NOT NULL,
  held_by TEXT NOT NULL,
  checkpoint BLOB NOT NULL,
  ending TEXT NOT NULL CHECK (ending IN ('', 'done', 'dropped', 'failed', 'expired', 'cancelled')),
  reason TEXT NOT NULL,
  state BLOB NOT NULL,
  hops BLOB NOT NULL,
  heard INTEGER NOT NULL CHECK (heard IN (0, 1)),
  record_task BLOB NOT NULL,
  opened_ms INTEGER NOT NULL,
  updated_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX journeys_by_agreement ON journeys (agreement_digest, ending, held_by);
CREATE INDEX journeys_to_batch ON journeys (agreement_digest, updated_ms) WHERE ending = 'done' AND record_task = x'';
CREATE INDEX journeys_by_record ON journeys (record_task) WHERE record_task <> x'';
CREATE INDEX journeys_over ON journeys (heard, updated_ms) WHERE ending <> '';

-- The way of a task up to when it left its home once more: hops that came back with it, which do not travel again.
CREATE TABLE journey_ways (
  task_id BLOB NOT NULL REFERENCES journeys ON DELETE CASCADE,
  sequence INTEGER NOT NULL,
  hops BLOB NOT NULL,
  PRIMARY KEY (task_id, sequence)
) STRICT, WITHOUT ROWID;

-- Chains of nodes whose hops are in tokens here, by their key: the home verifies them.
CREATE TABLE hop_signers (
  signer BLOB PRIMARY KEY CHECK (length(signer) = 32),
  chain BLOB NOT NULL,
  seen_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
"""

#: Added in version 6: what has a token's or hops' bytes in it lies in the order in which it came, so that what is put
#: in together is taken out of the same pages together; by its key, as before, half of each row overflowed its page.
IN_ORDER: Final = """
CREATE TABLE tokens_held_in_order (
  home TEXT NOT NULL,
  task_id BLOB NOT NULL CHECK (length(task_id) = 16),
  attempt INTEGER NOT NULL,
  sequence INTEGER NOT NULL,
  agreement_digest BLOB NOT NULL CHECK (length(agreement_digest) = 32),
  sender TEXT NOT NULL,
  body BLOB NOT NULL,
  PRIMARY KEY (home, task_id, attempt, sequence)
) STRICT;
INSERT INTO tokens_held_in_order SELECT * FROM tokens_held;
DROP TABLE tokens_held;
ALTER TABLE tokens_held_in_order RENAME TO tokens_held;

CREATE TABLE tokens_out_in_order (
  home TEXT NOT NULL,
  task_id BLOB NOT NULL CHECK (length(task_id) = 16),
  attempt INTEGER NOT NULL,
  sequence INTEGER NOT NULL,
  agreement_digest BLOB NOT NULL CHECK (length(agreement_digest) = 32),
  to_organization TEXT NOT NULL,
  role TEXT NOT NULL,
  passed INTEGER NOT NULL CHECK (passed IN (0, 1)),
  body BLOB NOT NULL,
  PRIMARY KEY (home, task_id, attempt, sequence)
) STRICT;
INSERT INTO tokens_out_in_order SELECT * FROM tokens_out;
DROP TABLE tokens_out;
ALTER TABLE tokens_out_in_order RENAME TO tokens_out;

CREATE TABLE journey_ways_in_order (
  task_id BLOB NOT NULL REFERENCES journeys ON DELETE CASCADE,
  sequence INTEGER NOT NULL,
  hops BLOB NOT NULL,
  PRIMARY KEY (task_id, sequence)
) STRICT;
INSERT INTO journey_ways_in_order SELECT * FROM journey_ways;
DROP TABLE journey_ways;
ALTER TABLE journey_ways_in_order RENAME TO journey_ways;

-- What tasks ended with and is still here: retention looks at no others.
CREATE INDEX journeys_with_state ON journeys (agreement_digest, updated_ms) WHERE ending <> '' AND state <> x'';
"""
