"""Agent cards: A2A JSON, signed by the node that answers for the agent, and good from no other peer."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode, urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comity.card import (
    IDENTITY_EXTENSION,
    LIBP2P_BINDING,
    MAX_CARD,
    MAX_CARD_LIFETIME_MS,
    AgentCard,
    Skill,
    open_card,
    sign_card,
)
from comity.digest import canonical_json
from comity.errors import CardInvalid, ChainInvalid, ComityError, SignatureInvalid
from comity.ids import SpiffeId
from comity.signing import PrivateKey
from comity.trust import (
    NodeIdentity,
    OrganizationCa,
    TrustStore,
    certificate_request,
    new_bundle,
    read_certificates,
    sign_bundle,
    verify_bundle,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NOW_MS = int(NOW.timestamp() * 1000)
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


@dataclass(frozen=True)
class World:
    mercy: NodeIdentity
    mercy_second: NodeIdentity
    hope: NodeIdentity
    stranger: NodeIdentity
    trust: TrustStore

    def card(self) -> AgentCard:
        return AgentCard(
            agent=SpiffeId("mercy.example", "agent", "generator"),
            peer_id=self.mercy.peer_id,
            name="generator",
            description="Synthetic tumour rows.",
            version="1.0.0",
            skills=(
                Skill("generate", "Generate", "Fits a copula.", ("tabular", "synthetic"), "generator"),
                Skill("repair", "Repair", "Repairs what reviewers refused.", ("tabular",), rows=4_500, price=250_000),
            ),
            addresses=("/ip4/127.0.0.1/tcp/4001",),
            issued_ms=NOW_MS,
            expires_ms=NOW_MS + DAY_MS,
        )

    def signed(self) -> bytes:
        return sign_card(self.mercy, self.card())

    def open(self, data: bytes, *, now_ms: int = NOW_MS, peer: NodeIdentity | None = None) -> AgentCard:
        return open_card(data, self.trust, now_ms, (peer or self.mercy).peer_id)


def node(ca: OrganizationCa, number: int) -> NodeIdentity:
    key = PrivateKey(bytes([number]) * 32)
    request = certificate_request(key, SpiffeId(ca.organization, "node", f"n{number}"))
    return NodeIdentity.of(key, read_certificates(ca.issue(request, now=NOW, lifetime=timedelta(days=30))))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    directory = tmp_path_factory.mktemp("organizations")
    mercy, hope, stranger = (
        OrganizationCa.create(f"{name}.example", directory / name, NOW) for name in ("mercy", "hope", "stranger")
    )
    pems = [mercy.certificate_pem, hope.certificate_pem]
    raw = new_bundle("tumours", pems, issued_ms=NOW_MS, expires_ms=NOW_MS + 365 * DAY_MS)
    bundle = verify_bundle(sign_bundle(sign_bundle(raw, mercy), hope), now_ms=NOW_MS, own_ca=None)
    return World(node(mercy, 1), node(mercy, 2), node(hope, 3), node(stranger, 4), TrustStore(bundle))


def encode(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def resigned(
    data: bytes,
    signer: NodeIdentity,
    *,
    card: Callable[[dict[str, Any]], object] = lambda _: None,
    header: Callable[[dict[str, Any]], object] = lambda _: None,
) -> bytes:
    """The card with changes, signed as RFC 7515 says, without our own signer."""
    fields = json.loads(data)
    protected = {
        "alg": "EdDSA",
        "typ": "JOSE",
        "kid": signer.peer_id,
        "x5c": [b64encode(der).decode() for der in signer.chain],
    }
    del fields["signatures"]
    card(fields)
    header(protected)
    first = encode(json.dumps(protected).encode())
    signature = signer.key.sign(f"{first}.{encode(canonical_json(fields))}".encode())
    fields["signatures"] = [{"protected": first, "signature": encode(signature)}]
    return canonical_json(fields)


def test_a_card_comes_back(world: World) -> None:
    card = world.open(world.signed())
    assert card == world.card()
    assert card.organization == "mercy.example"
    for addresses in ((), ("/ip4/10.0.0.1/tcp/1", "/dns4/n1.mercy.example/tcp/4001")):
        other = replace(world.card(), addresses=addresses)
        assert world.open(sign_card(world.mercy, other)) == other


def test_the_wire_form_is_a2a(world: World) -> None:
    """Section 4.4: the required fields with their names and types; section 8.4: the signature over RFC 8785."""
    data = world.signed()
    fields = json.loads(data)
    assert canonical_json(fields) == data
    assert {type(fields[key]) for key in ("name", "description", "version")} == {str}
    assert fields["supportedInterfaces"] == [
        {"url": "libp2p:/ip4/127.0.0.1/tcp/4001", "protocolBinding": LIBP2P_BINDING, "protocolVersion": "1.0"}
    ]
    assert fields["provider"]["organization"] == "mercy.example"
    assert fields["defaultInputModes"] == fields["defaultOutputModes"] == ["application/json"]
    assert fields["skills"][0] == {
        "id": "generate",
        "name": "Generate",
        "description": "Fits a copula.",
        "tags": ["tabular", "synthetic"],
    }
    assert [one["uri"] for one in fields["capabilities"]["extensions"]] == [IDENTITY_EXTENSION]
    (signature,) = fields.pop("signatures")
    header = json.loads(decode(signature["protected"]))
    assert (header["alg"], header["typ"], header["kid"]) == ("EdDSA", "JOSE", world.mercy.peer_id)
    assert [b64decode(one) for one in header["x5c"]] == list(world.mercy.chain)
    world.mercy.key.to_cryptography().public_key().verify(
        decode(signature["signature"]), f"{signature['protected']}.{encode(canonical_json(fields))}".encode()
    )


def test_the_helper_makes_good_cards(world: World) -> None:
    """So that what the refusals below refuse is the one thing that they change."""
    assert world.open(resigned(world.signed(), world.mercy)) == world.card()


def test_what_a2a_wants_is_never_empty(world: World) -> None:
    """Readers that go through protocol buffers drop what is empty, and the signature would not hold any more."""
    card = replace(world.card(), description="", skills=(Skill("repair", "Repair"),))
    opened = world.open(sign_card(world.mercy, card))
    assert opened.description == "generator"
    assert opened.skills == (Skill("repair", "Repair", "Repair", ("repair",)),)

    def leaves(value: object) -> list[object]:
        children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return [leaf for child in children for leaf in leaves(child)] if children else [value]

    fields = json.loads(sign_card(world.mercy, card))
    assert all(leaf not in ("", [], {}, None) for leaf in leaves(fields))


@pytest.mark.invariant("S5")
def test_a_card_that_another_peer_presents_is_refused(world: World) -> None:
    for peer in (world.hope, world.mercy_second, world.stranger):
        with pytest.raises(CardInvalid, match="presents it"):
            world.open(world.signed(), peer=peer)


@pytest.mark.invariant("S5")
def test_a_copied_card_that_another_node_signs_is_refused(world: World) -> None:
    for thief in (world.hope, world.mercy_second):
        with pytest.raises(CardInvalid, match="to vouch for"):
            world.open(resigned(world.signed(), thief), peer=thief)
    with pytest.raises(ChainInvalid, match="no member"):
        world.open(resigned(world.signed(), world.stranger), peer=world.stranger)


@pytest.mark.invariant("S2")
@pytest.mark.parametrize(
    "change",
    [
        lambda f: f.update(name="impostor"),
        lambda f: f["skills"][0].update(tags=["other"]),
        lambda f: f["capabilities"]["extensions"][0]["params"]["roles"].update(repair="validator"),
        lambda f: f.update(iconUrl="https://x"),
    ],
)
def test_a_changed_card_is_refused(world: World, change: Callable[[dict[str, Any]], object]) -> None:
    fields = json.loads(world.signed())
    change(fields)
    with pytest.raises(SignatureInvalid):
        world.open(canonical_json(fields))


@pytest.mark.invariant("S2")
@pytest.mark.parametrize(
    "header",
    [
        lambda h: h.update(jku="https://evil.example/keys"),
        lambda h: h.update(jwk={"kty": "OKP"}),
        lambda h: h.update(x5u="https://evil.example/chain"),
        lambda h: h.update(crit=["b64"], b64=False),
        lambda h: h.update(alg="none"),
        lambda h: h.update(alg="HS256"),
        lambda h: h.update(typ="JWT"),
        lambda h: h.pop("x5c"),
        lambda h: h.pop("kid"),
        lambda h: h.update(x5c="AAAA"),
        lambda h: h.update(x5c=["%"]),
        lambda h: h.update(x5c=[1]),
    ],
)
def test_any_other_header_is_refused(world: World, header: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(CardInvalid, match="malformed"):
        world.open(resigned(world.signed(), world.mercy, header=header))


@pytest.mark.parametrize("length", [0, 3])
def test_a_chain_of_another_length_is_refused(world: World, length: int) -> None:
    changed = resigned(world.signed(), world.mercy, header=lambda h: h.update(x5c=h["x5c"] * length))
    with pytest.raises(ChainInvalid, match="one or 2"):
        world.open(changed)


def params(fields: dict[str, Any]) -> dict[str, Any]:
    found = fields["capabilities"]["extensions"][0]["params"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    "card",
    [
        lambda f: f.pop("name"),
        lambda f: f.pop("skills"),
        lambda f: f.pop("provider"),
        lambda f: f.update(skills=[]),
        lambda f: f.update(skills=f["skills"] * 2),
        lambda f: f.update(name=1),
        lambda f: f.update(name="a\nb"),
        lambda f: f.update(name="n" * 129),
        lambda f: f.update(description="d" * 3000),
        lambda f: f["provider"].update(organization="hope.example"),
        lambda f: f["capabilities"].update(extensions=[]),
        lambda f: f["capabilities"].update(extensions=f["capabilities"]["extensions"] * 2),
        lambda f: params(f).pop("agent"),
        lambda f: params(f).update(agent="spiffe://hope.example/agent/generator"),
        lambda f: params(f).update(agent="spiffe://mercy.example/node/n1"),
        lambda f: params(f).update(agent="generator"),
        lambda f: params(f).update(peerId="12D3KooW"),
        lambda f: params(f)["roles"].update(repair=1),
        lambda f: params(f).update(roles=[]),
        lambda f: params(f)["offers"].update(repair=1),
        lambda f: params(f)["offers"]["repair"].update(rows=-1),
        lambda f: params(f)["offers"]["repair"].update(price=0.5),
        lambda f: params(f)["offers"]["repair"].pop("price"),
        lambda f: params(f).update(offers=[]),
        lambda f: f.update(version=""),
        lambda f: params(f).update(issuedMs="now"),
        lambda f: params(f).update(expiresMs=NOW_MS),
        lambda f: params(f).update(expiresMs=NOW_MS + MAX_CARD_LIFETIME_MS + 1),
        lambda f: params(f).update(issuedMs=NOW_MS + 60_000),
        lambda f: f["supportedInterfaces"][0].update(url="https://evil.example"),
        lambda f: f["supportedInterfaces"].extend(f["supportedInterfaces"] * 17),
    ],
)
def test_a_card_that_does_not_fit_is_refused_although_it_is_signed(
    world: World, card: Callable[[dict[str, Any]], object]
) -> None:
    with pytest.raises(CardInvalid):
        world.open(resigned(world.signed(), world.mercy, card=card))


def test_fields_of_a2a_that_are_not_used_are_left_alone(world: World) -> None:
    def richer(fields: dict[str, Any]) -> None:
        fields["documentationUrl"] = "https://mercy.example/docs"
        fields["capabilities"]["streaming"] = True
        fields["skills"][0]["examples"] = ["ten rows"]
        fields["supportedInterfaces"].append(
            {"url": "https://mercy.example/a2a", "protocolBinding": "JSONRPC", "protocolVersion": "1.0"}
        )

    assert world.open(resigned(world.signed(), world.mercy, card=richer)) == world.card()


@pytest.mark.invariant("S5")
def test_a_card_is_good_for_a_time(world: World) -> None:
    world.open(world.signed(), now_ms=NOW_MS + DAY_MS - 1)
    with pytest.raises(CardInvalid, match="not valid now"):
        world.open(world.signed(), now_ms=NOW_MS + DAY_MS)
    with pytest.raises(CardInvalid, match="not valid now"):
        world.open(world.signed(), now_ms=NOW_MS - 30_001)


def test_one_form_only(world: World) -> None:
    data = world.signed()
    fields = json.loads(data)
    twice = fields | {"signatures": fields["signatures"] * 2}
    unprotected = fields | {"signatures": [fields["signatures"][0] | {"header": {"jku": "https://evil.example"}}]}
    for other in (
        json.dumps(fields).encode(),
        data + b"\n",
        canonical_json(fields | {"signatures": []}),
        canonical_json(twice),
        canonical_json(unprotected),
        data.replace(b'{"capabilities"', b'{"capabilities":{},"capabilities"', 1),
        b"",
        b"[]",
        b"7",
        b'"\\ud800"',
    ):
        with pytest.raises(CardInvalid):
            world.open(other)


@pytest.mark.invariant("S7")
@pytest.mark.parametrize("data", [b" " * (MAX_CARD + 1), b"[" * MAX_CARD, b'{"a":' * 10_000, b'{"a":[' * 400])
def test_too_large_or_too_deep(world: World, data: bytes) -> None:
    with pytest.raises(CardInvalid):
        world.open(data)


def test_what_is_not_signed(world: World) -> None:
    card = world.card()
    for wrong in (
        replace(card, agent=SpiffeId("hope.example", "agent", "generator")),
        replace(card, agent=SpiffeId("mercy.example", "node", "n1")),
        replace(card, peer_id=world.hope.peer_id),
        replace(card, skills=()),
        replace(card, skills=card.skills * 2),
        replace(card, skills=(Skill("", "no id"),)),
        replace(card, skills=(Skill("no-name", ""),)),
        replace(card, skills=(Skill("s", "S", rows=-1),)),
        replace(card, skills=(Skill("s", "S", price=1 << 53),)),
        replace(card, name=""),
        replace(card, expires_ms=card.issued_ms),
        replace(card, expires_ms=card.issued_ms + MAX_CARD_LIFETIME_MS + 1),
        replace(card, addresses=("127.0.0.1:4001",)),
        replace(card, addresses=("/ip4/127.0.0.1/tcp/1",) * 17),
        replace(card, issued_ms=2**60, expires_ms=2**60 + 1),
        replace(card, description="\ud800"),
        replace(card, skills=tuple(Skill(f"s{n}", "n", "\u20ac" * 2000) for n in range(64))),
    ):
        with pytest.raises(CardInvalid):
            sign_card(world.mercy, wrong)


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_one_changed_byte_is_refused(world: World, where: int, flip: int) -> None:
    data = bytearray(world.signed())
    data[where % len(data)] ^= flip
    with pytest.raises(ComityError):
        world.open(bytes(data))


short = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), max_size=20).filter(
    str.isprintable
)


some = short.filter(bool)


@given(
    st.lists(st.builds(Skill, some, some, some, st.tuples(some), short), min_size=1, max_size=5),
    some,
    some,
)
def test_any_card_that_is_signed_comes_back(world: World, skills: list[Skill], name: str, description: str) -> None:
    unique = {skill.id: skill for skill in skills}
    card = replace(world.card(), skills=tuple(unique.values()), name=name, description=description)
    assert world.open(sign_card(world.mercy, card)) == card
