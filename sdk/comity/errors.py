"""Every error that Comity raises, in one tree.

    ComityError
    ├── ConfigError                  a file is wrong: carries file, line and column
    │   └── MissingExtra             a command needs packages that are not installed
    ├── InvalidName                  not an organization name, SPIFFE ID or digest
    ├── TrustError                   identity: chains, bundles, keys, signatures
    │   ├── SignatureInvalid
    │   ├── ProofInvalid
    │   ├── ChainInvalid
    │   ├── OwnCertificateExpired
    │   ├── BundleInvalid
    │   ├── CardInvalid
    │   ├── RevocationInvalid
    │   └── KeyFileInvalid
    ├── EnvelopeError                a message was refused before its body was read
    │   ├── EnvelopeMalformed
    │   ├── WrongAudience
    │   ├── StaleMessage
    │   ├── ReplayedMessage
    │   └── ReplayTableFull
    ├── ProtocolError                a peer does not speak the protocol
    │   ├── FrameTooLarge
    │   ├── ChunkInvalid             a chunk of a bulk transfer is not the one that was announced
    │   ├── FlowMismatch             a task's cursor or state is none that its flow can lead to
    │   └── UnexpectedMessage
    ├── LinkError                    a peer cannot be reached, or not now
    │   ├── PeerUnreachable
    │   ├── PeerNotAttested
    │   ├── LinkClosed
    │   ├── DeadlineExceeded
    │   ├── PeerRefused
    │   └── Busy
    │       └── AgreementUnknown     the agreement is not known there yet: it can be brought
    ├── PolicyDenied                 a decision: carries the rules and the reason
    │   └── ApprovalPending          a person has to say yes first: carries which approval, and until when
    ├── AgreementError               unknown, expired or violated terms
    │   └── AgreementStopped         suspended or ended: nothing happens under it now
    ├── InvalidRecord                a record does not fit its dataset's schema
    ├── TransferFailed               a bulk transfer came to nothing and cannot be resumed
    ├── CertificateInvalid           a certificate or provenance does not prove what it says
    ├── AgentError                   user code behind the node
    │   ├── NoWorker
    │   ├── WorkerLost
    │   ├── AgentFailed
    │   └── BackendError             a model's server behind an agent: not reached, or refused
    │       ├── BackendBusy
    │       ├── BackendTimeout
    │       └── BackendReplyInvalid
    ├── ModelError                   an ONNX model is not what was pinned, or is not safe to open
    ├── StorageError                 the disk: corrupt, locked, read-only
    │   ├── StorageFull              the disk or the node's share of it is full: later it may work again
    │   └── AuditBroken              the audit log was tampered with
    └── ControlError                 the control API cannot be reached or refused the call
        ├── NotFound                 the node has no such workflow, record or tunnel
        └── NodeStopping             the node is on its way down

`code` is what travels on the wire and in `--json` output; it never changes once released.
"""

from __future__ import annotations

from collections.abc import Mapping


class ComityError(Exception):
    """Base of every error of this project."""

    #: One for each class; only ControlError, which brings another process's error, carries one of its own.
    code: str = "error"
    #: What the reader can do about it, when that is the same each time.
    advice: str = ""

    def diagnostics(self) -> str:
        """One line for a person: what happened, and what to do about it."""
        text = str(self) or type(self).__name__
        return f"{text} ({self.advice})" if self.advice else text


class ConfigError(ComityError):
    """A file that a person wrote is wrong."""

    code = "config_invalid"

    def __init__(
        self, message: str, *, file: str = "", line: int = 0, column: int = 0, path: tuple[str | int, ...] = ()
    ) -> None:
        """Say what is wrong, and where: in which file, or which keys and positions of a document lead to it."""
        self.file, self.line, self.column, self.path = file, line, column, path
        place = ":".join(str(part) for part in (file, line, column) if part)
        super().__init__(f"{place}: {message}" if place else message)


class MissingExtra(ConfigError):
    """A command needs an optional part of the distribution."""

    code = "missing_extra"

    def __init__(self, extra: str, package: str) -> None:
        super().__init__(f"this needs {package}; install it with: pip install 'comity[{extra}]'")


class InvalidName(ComityError):
    """A name or identifier is not well formed."""

    code = "invalid_name"


class TrustError(ComityError):
    """An identity cannot be trusted."""

    code = "untrusted"


class SignatureInvalid(TrustError):
    """A signature does not verify."""

    code = "signature_invalid"


class ProofInvalid(TrustError):
    """A Merkle proof does not lead from its leaf to the tree's head."""

    code = "proof_invalid"


class ChainInvalid(TrustError):
    """A certificate chain does not lead to a root of the trust bundle."""

    code = "chain_invalid"


class OwnCertificateExpired(TrustError):
    """The node's own certificate has expired: nobody would accept what it signs, so it signs nothing."""

    code = "own_certificate_expired"
    advice = "renew it with `comity cert request`, `approve` and `install`; a running node takes the new one by itself"


class BundleInvalid(TrustError):
    """A trust bundle is malformed, unsigned, expired or of another epoch."""

    code = "bundle_invalid"


class CardInvalid(TrustError):
    """An agent card is malformed, expired, or not of the peer that presents it."""

    code = "card_invalid"


class RevocationInvalid(TrustError):
    """A revocation is malformed, or not its certificate's issuer's."""

    code = "revocation_invalid"


class KeyFileInvalid(TrustError):
    """A private key's file is missing, malformed or readable by others."""

    code = "key_file_invalid"


class EnvelopeError(ComityError):
    """A message was refused before its body was read."""

    code = "envelope_refused"


class EnvelopeMalformed(EnvelopeError):
    """The bytes are no envelope of the kind that was expected."""

    code = "envelope_malformed"


class WrongAudience(EnvelopeError):
    """The message is addressed to somebody else."""

    code = "wrong_audience"


class StaleMessage(EnvelopeError):
    """The message is expired, from the future, or older than what a restart can vouch for."""

    code = "stale"


class ReplayedMessage(EnvelopeError):
    """The message has been seen before."""

    code = "replayed"


class ReplayTableFull(EnvelopeError):
    """The signer, its organization or all together start anew more often than a node keeps windows of ids for."""

    code = "replay_table_full"


class ProtocolError(ComityError):
    """A peer does not speak the protocol."""

    code = "protocol_error"


class FrameTooLarge(ProtocolError):
    """A length prefix is over the limit; nothing was allocated for it."""

    code = "frame_too_large"


class ChunkInvalid(ProtocolError):
    """A chunk of a bulk transfer is not the one that was announced."""

    code = "chunk_invalid"

    def __init__(self, index: int, where: str) -> None:
        self.index = index
        super().__init__(f"chunk {index} {where} is not the one that the manifest announces")


class FlowMismatch(ProtocolError):
    """A task's cursor or state is none that its flow can lead to."""

    code = "flow_mismatch"


class UnexpectedMessage(ProtocolError):
    """A well-formed message that makes no sense in this state."""

    code = "unexpected_message"


class LinkError(ComityError):
    """A peer cannot be talked to, or not now."""

    code = "link_error"


class PeerUnreachable(LinkError):
    """No address of the peer answers."""

    code = "peer_unreachable"


class PeerNotAttested(LinkError):
    """The peer did not prove that it is a member of the consortium."""

    code = "peer_not_attested"


class LinkClosed(LinkError):
    """The link went down before the answer came."""

    code = "link_closed"


class DeadlineExceeded(LinkError):
    """The answer did not come in time."""

    code = "deadline_exceeded"


class PeerRefused(LinkError):
    """The peer answered with an error of its own: carries that error's code."""

    code = "peer_refused"

    def __init__(self, message: str, *, remote_code: str) -> None:
        self.remote_code = remote_code
        super().__init__(message)


class Busy(LinkError):
    """The peer, or a queue on the way to it, is full."""

    code = "busy"

    def __init__(self, message: str, *, retry_after_ms: int = 1000) -> None:
        self.retry_after_ms = retry_after_ms
        super().__init__(message)


class AgreementUnknown(Busy):
    """The agreement is not known to this node yet: another node of its organization has it, or it is on its way."""

    code = "agreement_unknown"


class PolicyDenied(ComityError):
    """A policy said no."""

    code = "policy_denied"

    #: What stands between what was decided and the rule that comes nearest, which is this organization's business.
    NEAREST = "; nearest: "

    def __init__(self, reason: str, *, rules: tuple[str, ...] = ()) -> None:
        self.reason, self.rules = reason, rules
        super().__init__(reason)

    @property
    def told(self) -> str:
        """The reason as the other side is told it: not what a rule wants that would have let it pass."""
        return self.reason.partition(self.NEAREST)[0]


class ApprovalPending(PolicyDenied):
    """The policy lets it happen once a person has approved it; nobody has yet.

    Attributes:
        approval: the approval's id in hex, as `comity approvals list` shows it.
        deadline_ms: until when it waits, in milliseconds since the Unix epoch; then it is a no.
    """

    code = "approval_pending"

    def __init__(self, reason: str, *, rules: tuple[str, ...], approval: str, deadline_ms: int) -> None:
        self.approval, self.deadline_ms = approval, deadline_ms
        super().__init__(reason, rules=rules)


class AgreementError(ComityError):
    """There is no such agreement, it is over, or its terms say otherwise."""

    code = "agreement_violated"


class AgreementStopped(AgreementError):
    """Nothing happens under the agreement now: it was ended, or this organization's policy does not carry it."""

    code = "agreement_stopped"


class InvalidRecord(ComityError):
    """A record does not fit its dataset's schema."""

    code = "invalid_record"


class TransferFailed(ComityError):
    """A bulk transfer came to nothing and cannot be resumed."""

    code = "transfer_failed"
    advice = "see what was wrong, and send the table again"


class CertificateInvalid(ComityError):
    """A certificate or a provenance does not prove what it says."""

    code = "certificate_invalid"


class AgentError(ComityError):
    """User code behind the node could not do the work."""

    code = "agent_error"


class NoWorker(AgentError):
    """No worker offers the skill."""

    code = "no_worker"


class WorkerLost(AgentError):
    """The worker went away with the work."""

    code = "worker_lost"


class AgentFailed(AgentError):
    """The agent raised, returned the wrong type or took too long."""

    code = "agent_failed"


class BackendError(AgentError):
    """A model's server cannot be reached, refused a request, or broke off in the middle."""

    code = "backend_error"


class BackendBusy(BackendError):
    """A model's server has too much to do; or too many of our own calls wait for it."""

    code = "backend_busy"

    def __init__(self, message: str, *, retry_after_ms: int = 0) -> None:
        self.retry_after_ms = retry_after_ms
        super().__init__(message)


class BackendTimeout(BackendError):
    """A model's server did not answer, or did not begin to, in time."""

    code = "backend_timeout"


class BackendReplyInvalid(BackendError):
    """A model's server answered with what is no answer, or the model with what was not asked for.

    Attributes:
        usage: what it cost all the same, as a skill reports it; empty if nothing was counted.
    """

    code = "backend_reply_invalid"

    def __init__(self, message: str, *, usage: Mapping[str, float] | None = None) -> None:
        self.usage = dict(usage or {})
        super().__init__(message)


class ModelError(ComityError):
    """An ONNX model is not what was pinned, or is not safe to open."""

    code = "model_refused"


class StorageError(ComityError):
    """The database cannot be read or written."""

    code = "storage_error"


class StorageFull(StorageError):
    """The disk, or what the node may use of it, is full; nothing of the refused change was applied."""

    code = "storage_full"
    advice = "free disk space or raise the node's limit; the node goes on by itself once there is room"


class AuditBroken(StorageError):
    """The audit log does not verify."""

    code = "audit_broken"

    def __init__(self, message: str, *, index: int | None = None) -> None:
        #: The first entry that is wrong, where one can be named.
        self.index = index
        super().__init__(message if index is None else f"entry {index}: {message}")


class ControlError(ComityError):
    """The node's control API cannot be reached, or refused the call.

    A client raises it with the `code` and `advice` of the error that the node met, and the policy rules if it was one.
    """

    code = "control_error"

    def __init__(self, message: str, *, code: str = "", advice: str = "", rules: tuple[str, ...] = ()) -> None:
        self.code, self.advice, self.rules = code or self.code, advice or self.advice, rules
        super().__init__(message)


class NotFound(ControlError):
    """The node has no such workflow, record or tunnel."""

    code = "not_found"


class NodeStopping(ControlError):
    """The node is on its way down."""

    code = "node_stopping"
    advice = "try again when it is back"
