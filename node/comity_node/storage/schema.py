"""The tables of a node's database, and the versions of them that this build can open.

All tables are STRICT (https://www.sqlite.org/stricttables.html). Times are milliseconds since the Unix epoch, digests
are 32 raw bytes, identifiers of tasks, batches and messages 16 raw bytes. Lists of byte strings are packed by
`comity_node.storage.packing`.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from comity.errors import StorageError

#: `PRAGMA application_id`: "cmty" in ASCII.
APPLICATION_ID: Final = 0x636D7479
#: `PRAGMA user_version` of the tables below.
SCHEMA_VERSION: Final = 3
#: STRICT tables came with 3.37, JSON functions in every build with 3.38.
MIN_SQLITE: Final = (3, 38, 0)

#: Added in version 3. Transfers of whole tables; what has to be done about them is in `comity_node.storage.bulk`.
_BULK: Final = """
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

#: Added in version 3. Verified revocations of nodes' certificates.
_REVOCATIONS: Final = """
CREATE TABLE revocations (
  fingerprint BLOB PRIMARY KEY CHECK (length(fingerprint) = 32),
  organization TEXT NOT NULL,
  issued_ms INTEGER NOT NULL,
  envelope BLOB NOT NULL
) STRICT;
"""

#: Older versions that can be read as they are, and the tables that the writer adds to bring each up to date.
_UPGRADES: Final = {2: _BULK + _REVOCATIONS}

_TABLES: Final = """
CREATE TABLE meta (
  key TEXT PRIMARY KEY,
  value BLOB NOT NULL
) STRICT, WITHOUT ROWID;

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


def check_library() -> None:
    """Refuse a SQLite that is too old for the tables.

    Raises:
        StorageError: the SQLite library that Python was built with is older than 3.38.
    """
    if sqlite3.sqlite_version_info < MIN_SQLITE:
        wanted = ".".join(map(str, MIN_SQLITE))
        raise StorageError(
            f"SQLite {sqlite3.sqlite_version} is too old; use a Python that is built with SQLite {wanted} or newer"
        )


def prepare(connection: sqlite3.Connection, name: str) -> None:
    """Create the tables in an empty database, or check that they are those of this build or can be brought there.

    What an older version lacks is added, in one transaction; nothing that is there is changed.

    Args:
        connection: a connection in autocommit mode that may write.
        name: the file's name, for the message.

    Raises:
        StorageError: the file belongs to another application or has another schema version.
        sqlite3.Error: the database cannot be read or written.
    """
    if connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] > 0:
        check_version(connection, name)
        _upgrade(connection)
        return
    # executescript ends an open transaction, so the script brings its own; DDL is transactional in SQLite.
    connection.executescript(
        f"BEGIN IMMEDIATE; {_TABLES} {_BULK} {_REVOCATIONS} PRAGMA application_id = {APPLICATION_ID};"
        f" PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
    )


def _upgrade(connection: sqlite3.Connection) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version in _UPGRADES:
        connection.executescript(
            f"BEGIN IMMEDIATE; {_UPGRADES[version]} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
        )


def check_version(connection: sqlite3.Connection, name: str) -> None:
    """Check that a database holds the tables that this build knows, or those of a version that it can bring up to date.

    Raises:
        StorageError: the file belongs to another application or has another schema version.
        sqlite3.Error: the file is no database or cannot be read.
    """
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application != APPLICATION_ID:
        raise StorageError(f"{name} is a database of another application; give the node a path of its own")
    if version != SCHEMA_VERSION and version not in _UPGRADES:
        raise StorageError(
            f"{name} has schema version {version} and this build knows {SCHEMA_VERSION}; "
            "run the version of comity that wrote it"
        )
