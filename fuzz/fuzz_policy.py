"""Fuzzes policies: a text is refused with a place and a reason, or it is a policy that decides whatever it is asked.

Run: python -m fuzz.run policy
"""

from __future__ import annotations

from pathlib import Path

from comity.errors import ComityError, ConfigError
from comity_node import strictyaml
from comity_node.policy.loader import loads_policy
from comity_node.policy.model import Request

_SCHEMA = b"""{"type": "object", "properties": {"age": {"type": "integer"}, "name": {"type": "string"}}}"""
_RULES = b"""
version: 1
organization: home.example
purposes: {research: {}, screening: {parent: research}}
rules:
  - id: send
    allow: record.send
    to: [other.example]
    kinds: [synthetic]
    purpose: research
    when: {distance: {at_least: 0.1}}
    obligations: {redact: [name], generalize: {age: 5}, quota: {records: 10, per: 1h}}
  - id: never
    deny: tunnel.open
    to: "*"
"""
_REQUESTS = tuple(
    Request(action=action, organization="other.example", purpose="screening", dataset=dataset, kind="synthetic")
    for action in ("record.send", "record.receive", "tunnel.open", "no.such.action")
    for dataset in ("", "rows")
)


def _packs() -> tuple[bytes, ...]:
    folder = Path(__file__).resolve().parent.parent / "policies"
    return tuple(path.read_bytes() for path in sorted(folder.glob("*.yaml")) if ".tests." not in path.name)


#: Where a fuzzer begins: a small policy, those that come with Comity, and YAML that is not taken.
SEEDS = (
    b"version: 1\norganization: home.example\nrules: []\n",
    _RULES,
    *_packs(),
    b"a: &x [1]\nb: *x\n",
    b"a: 1\na: 2\n",
    b"? [a]\n: {b: no}\n",
)


def one(data: bytes) -> None:
    """Read the bytes as YAML and as a policy, and ask the policy."""
    readable = _is_read(data)
    try:
        policy = loads_policy(data, schemas={"s.json": _SCHEMA})
    except ComityError as error:
        _has_a_reason(error)
        return
    assert readable
    assert loads_policy(data, schemas={"s.json": _SCHEMA}).digest == policy.digest
    for request in _REQUESTS:
        decision = policy.decide(request)
        assert decision == policy.decide(request)
        assert decision.reason


def _is_read(data: bytes) -> bool:
    try:
        strictyaml.loads(data)
    except ConfigError as error:
        _has_a_reason(error)
        return False
    return True


def _has_a_reason(error: ComityError) -> None:
    assert str(error)
