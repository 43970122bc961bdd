"""Agent cards: what an agent offers, signed by the node that answers for it.

A card is an A2A v1.0 AgentCard (https://a2a-protocol.org, specification section 4.4) in RFC 8785 form. What A2A has no
field for (the agent's SPIFFE ID, the node's PeerId, the time in which the card is good; role, capacity and price of
each skill) stands in an extension of its capabilities. The signature is a JWS (RFC 7515, A2A section 8.4) with EdDSA
(RFC 8037) whose protected header carries the node's certificate chain as `x5c`; no other key is ever looked for: a
header with `jku`, `jwk`, `x5u`, `crit` or anything else is refused.

A card is opened in these steps, and the first that fails refuses it:

1. size limit, JSON, and the one canonical form: the bytes that were signed are those that were received;
2. exactly one signature, with exactly the header above;
3. the chain verifies against the trust bundle (`comity.trust`);
4. the node of that chain is the peer that presents the card: a copied card is refused (S5);
5. the signature;
6. the card is that node's own: its organization, its PeerId; and it is good now.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from comity.digest import canonical_json
from comity.errors import CardInvalid, InvalidName
from comity.ids import SpiffeId
from comity.signing import verify
from comity.strictjson import MAX_INTEGER, Fields, parse_json
from comity.trust import NodeIdentity, TrustStore

#: Bytes of the largest card that is made or opened.
MAX_CARD: Final = 64 * 1024
#: How long a card may be good.
MAX_CARD_LIFETIME_MS: Final = 7 * 24 * 3600 * 1000
MAX_SKILLS: Final = 64
MAX_ADDRESSES: Final = 16
#: URI of the extension with what A2A has no field for.
IDENTITY_EXTENSION: Final = "urn:comity:a2a:identity:v1"
#: `protocolBinding` of a node's libp2p addresses.
LIBP2P_BINDING: Final = "urn:comity:a2a:libp2p:v1"
_A2A_VERSION = "1.0"
_URL_SCHEME = "libp2p:"
_MEDIA_TYPE = "application/json"
_SKEW_MS = 30_000
_MAX_TEXT = 2048
_MAX_NAME = 128
_MAX_TAGS = 16


@dataclass(frozen=True, slots=True)
class Skill:
    """Something that an agent can do. A2A wants a description and tags: a signed card has the name and the id instead.

    Attributes:
        id: unique within the card, such as `generate`.
        name: for people.
        description: for people.
        tags: key words.
        role: the part that it plays in workflows, such as `generator` or `validator`; policies can ask for it.
        rows: that can be done in 1,000 seconds; 0: not said.
        price: that is asked for a row, in millionths of the unit that the consortium has agreed on.
    """

    id: str
    name: str
    description: str = ""
    tags: tuple[str, ...] = ()
    role: str = ""
    rows: int = 0
    price: int = 0


@dataclass(frozen=True, slots=True)
class AgentCard:
    """What an agent offers.

    Attributes:
        agent: the agent's SPIFFE ID.
        peer_id: the node that answers for it.
        name: for people.
        description: for people; a signed card has the name if it is empty.
        version: the agent's version.
        skills: what it can do; at least one.
        addresses: multiaddrs of the node; none if it only dials.
        issued_ms: milliseconds since the Unix epoch.
        expires_ms: milliseconds since the Unix epoch, at most `MAX_CARD_LIFETIME_MS` after `issued_ms`.
    """

    agent: SpiffeId
    peer_id: str
    name: str
    description: str
    version: str
    skills: tuple[Skill, ...]
    addresses: tuple[str, ...]
    issued_ms: int
    expires_ms: int

    @property
    def organization(self) -> str:
        """The organization that the agent belongs to."""
        return self.agent.organization


def sign_card(identity: NodeIdentity, card: AgentCard) -> bytes:
    """Return the signed card as A2A JSON in RFC 8785 form.

    Raises:
        CardInvalid: the card is not of this node, breaks a limit, or is too large.
    """
    _check(card, identity.organization, identity.peer_id)
    fields = _to_a2a(card)
    header = {
        "alg": "EdDSA",
        "typ": "JOSE",
        "kid": identity.peer_id,
        "x5c": [base64.b64encode(der).decode("ascii") for der in identity.chain],
    }
    try:
        protected = _to_base64url(canonical_json(header))
        signature = identity.key.sign(_signing_input(protected, canonical_json(fields)))
        fields["signatures"] = [{"protected": protected, "signature": _to_base64url(signature)}]
        data = canonical_json(fields)
    except ValueError as error:
        raise CardInvalid(f"the card is no JSON: {error}") from error
    if len(data) > MAX_CARD:
        raise CardInvalid(f"a card of {len(data)} bytes is over the limit of {MAX_CARD}")
    return data


def open_card(data: bytes, trust: TrustStore, now_ms: int, expected_peer_id: str) -> AgentCard:
    """Verify a card by the six steps above.

    Args:
        data: the card as received.
        trust: the consortium.
        now_ms: the time, in milliseconds since the Unix epoch.
        expected_peer_id: the peer that presents the card.

    Raises:
        CardInvalid: malformed, expired, or not of the peer that presents it.
        ChainInvalid: the signer's chain does not verify.
        SignatureInvalid: the signature does not verify.
    """
    try:
        fields = parse_json(data, limit=MAX_CARD)
        if not isinstance(fields, dict) or canonical_json(fields) != data:
            raise CardInvalid("the card is no JSON object in RFC 8785 form")
        protected, signature = _read_signature(Fields(fields, "the card"))
        chain = _read_header(protected)
    except (ValueError, RecursionError) as error:
        raise CardInvalid(f"malformed agent card: {error}") from error
    attested = trust.verify_chain(chain, now_ms)
    if attested.peer_id != expected_peer_id:
        raise CardInvalid(f"the card is signed by {attested.peer_id}, but {expected_peer_id} presents it")
    payload = canonical_json({key: value for key, value in fields.items() if key != "signatures"})
    verify(attested.public_key, signature, _signing_input(protected, payload))
    try:
        card = _from_a2a(Fields(fields, "the card"))
    except (ValueError, InvalidName) as error:
        raise CardInvalid(f"malformed agent card: {error}") from error
    _check(card, attested.organization, attested.peer_id)
    if card.issued_ms > now_ms + _SKEW_MS or card.expires_ms <= now_ms:
        raise CardInvalid(f"the card of {card.agent} is not valid now")
    return card


def _check(card: AgentCard, organization: str, peer_id: str) -> None:
    """Refuse a card that is not of this node or breaks a limit."""
    if card.agent.kind != "agent" or card.organization != organization or card.peer_id != peer_id:
        raise CardInvalid(f"{card.agent} at {card.peer_id} is not for {organization}'s node {peer_id} to vouch for")
    if not 0 < card.expires_ms - card.issued_ms <= MAX_CARD_LIFETIME_MS:
        raise CardInvalid(f"a card may be good for {MAX_CARD_LIFETIME_MS} ms at most")
    ids = {skill.id for skill in card.skills}
    if not 1 <= len(card.skills) <= MAX_SKILLS or len(ids) != len(card.skills):
        raise CardInvalid(f"a card has from 1 to {MAX_SKILLS} skills with different ids")
    if len(card.addresses) > MAX_ADDRESSES or not all(one.startswith("/") for one in card.addresses):
        raise CardInvalid(f"a card has at most {MAX_ADDRESSES} addresses, each a multiaddr")
    if not (card.name and card.version and all(skill.id and skill.name for skill in card.skills)):
        raise CardInvalid("an agent has a name and a version, and a skill an id and a name")
    short = [card.name, card.version]
    for skill in card.skills:
        short += [skill.id, skill.name, skill.role, *skill.tags]
        if len(skill.tags) > _MAX_TAGS:
            raise CardInvalid(f"a skill has at most {_MAX_TAGS} tags")
        if not (0 <= skill.rows <= MAX_INTEGER and 0 <= skill.price <= MAX_INTEGER):
            raise CardInvalid("rows and price of a skill are integers from 0 to 2^53 - 1")
    if any(len(text) > _MAX_NAME or not text.isprintable() for text in short):
        raise CardInvalid(f"names, tags and roles are printable and have at most {_MAX_NAME} characters")
    long = [card.description, *card.addresses, *(skill.description for skill in card.skills)]
    if any(len(text) > _MAX_TEXT for text in long):
        raise CardInvalid(f"a description has at most {_MAX_TEXT} characters")


def _to_a2a(card: AgentCard) -> dict[str, Any]:
    params: dict[str, Any] = {
        "agent": str(card.agent),
        "peerId": card.peer_id,
        "issuedMs": card.issued_ms,
        "expiresMs": card.expires_ms,
    }
    if roles := {skill.id: skill.role for skill in card.skills if skill.role}:
        params["roles"] = roles
    if offers := {skill.id: {"price": skill.price, "rows": skill.rows} for skill in card.skills if _is_offer(skill)}:
        params["offers"] = offers
    extension = {
        "uri": IDENTITY_EXTENSION,
        "description": "Who answers for this agent, until when, and which role each skill plays.",
        "required": True,
        "params": params,
    }
    # A2A wants at least one interface, also of a node that nobody can dial.
    urls = [_URL_SCHEME + address for address in card.addresses or (_no_address(card.peer_id),)]
    return {
        "name": card.name,
        "description": card.description or card.name,
        "version": card.version,
        "provider": {"organization": card.organization, "url": f"spiffe://{card.organization}"},
        "supportedInterfaces": [
            {"url": url, "protocolBinding": LIBP2P_BINDING, "protocolVersion": _A2A_VERSION} for url in urls
        ],
        "capabilities": {"extensions": [extension]},
        "defaultInputModes": [_MEDIA_TYPE],
        "defaultOutputModes": [_MEDIA_TYPE],
        "skills": [
            {
                "id": one.id,
                "name": one.name,
                "description": one.description or one.name,
                "tags": list(one.tags or (one.id,)),
            }
            for one in card.skills
        ],
    }


def _is_offer(skill: Skill) -> bool:
    return bool(skill.rows or skill.price)


def _from_a2a(fields: Fields) -> AgentCard:
    """Read a card whose signature has verified. Fields of A2A that are not used here are left alone."""
    params = _identity_params(fields.object("capabilities"))
    agent = SpiffeId.parse(params.text("agent"))
    peer_id = params.text("peerId")
    if fields.object("provider").text("organization") != agent.organization:
        raise ValueError("its provider is not the organization of its agent")
    roles = params.object("roles") if "roles" in params.names() else Fields({}, "no roles")
    offers = params.object("offers") if "offers" in params.names() else Fields({}, "no offers")
    return AgentCard(
        agent=agent,
        peer_id=peer_id,
        name=fields.text("name"),
        description=fields.text("description"),
        version=fields.text("version"),
        skills=tuple(_read_skill(one, roles, offers) for one in fields.array("skills", longest=MAX_SKILLS)),
        addresses=_read_addresses(fields.array("supportedInterfaces", longest=MAX_ADDRESSES + 1), peer_id),
        issued_ms=params.integer("issuedMs"),
        expires_ms=params.integer("expiresMs"),
    )


def _identity_params(capabilities: Fields) -> Fields:
    found = [
        one
        for one in capabilities.array("extensions", longest=64)
        if isinstance(one, Mapping) and one.get("uri") == IDENTITY_EXTENSION
    ]
    if len(found) != 1:
        raise ValueError(f"it does not have the extension {IDENTITY_EXTENSION} once")
    return Fields(found[0], "the identity extension").object("params")


def _read_skill(value: object, roles: Fields, offers: Fields) -> Skill:
    fields = Fields(value, "a skill")
    name = fields.text("id")
    offer = offers.object(name) if name in offers.names() else None
    return Skill(
        id=name,
        name=fields.text("name"),
        description=fields.text("description"),
        tags=fields.texts("tags", most=_MAX_TAGS),
        role=roles.text(name) if name in roles.names() else "",
        rows=offer.integer("rows") if offer is not None else 0,
        price=offer.integer("price") if offer is not None else 0,
    )


def _read_addresses(interfaces: Sequence[Any], peer_id: str) -> tuple[str, ...]:
    addresses = []
    for value in interfaces:
        fields = Fields(value, "an interface")
        url = fields.text("url")
        if fields.text("protocolBinding") == LIBP2P_BINDING and url != _URL_SCHEME + _no_address(peer_id):
            addresses.append(url.removeprefix(_URL_SCHEME))
    return tuple(addresses)


def _no_address(peer_id: str) -> str:
    return f"/p2p/{peer_id}"


def _read_signature(fields: Fields) -> tuple[str, bytes]:
    signatures = fields.array("signatures", longest=1)
    if len(signatures) != 1:
        raise ValueError("it does not have exactly one signature")
    signature = Fields(signatures[0], "the signature")
    protected, value = signature.text("protected", longest=MAX_CARD), signature.text("signature", longest=128)
    signature.close()
    return protected, _from_base64url(value)


def _read_header(protected: str) -> tuple[bytes, ...]:
    """Return the chain of a protected header that holds what `sign_card` writes and nothing else."""
    header = Fields(parse_json(_from_base64url(protected), limit=MAX_CARD), "the signature's header")
    if (header.text("alg"), header.text("typ")) != ("EdDSA", "JOSE"):
        raise ValueError("the signature is no EdDSA")
    header.text("kid")
    chain = header.texts("x5c", most=8, longest=MAX_CARD)
    header.close()
    return tuple(base64.b64decode(text, validate=True) for text in chain)


def _signing_input(protected: str, payload: bytes) -> bytes:
    """RFC 7515, section 5.1."""
    return f"{protected}.{_to_base64url(payload)}".encode("ascii")


def _to_base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _from_base64url(text: str) -> bytes:
    """Read base64url without padding in its one form (RFC 7515, section 2)."""
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("not base64url") from error
    if _to_base64url(data) != text:
        raise ValueError("not base64url")
    return data
