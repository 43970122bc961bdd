"""A lab in which one organization has two nodes, that others are linked with both of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from comity.errors import LinkClosed
from comity.trust import Attested
from kit.consortium import attested, consortium, names
from kit.lab import Agents, Lab, Links, Member, Network, policy


@dataclass
class ManyLinks(Links):
    """Links that know all nodes of an organization that are up, but for those that are cut."""

    cut: set[str] = field(default_factory=set)

    def nodes(self, organization: str) -> Sequence[Attested]:
        if organization == self.me.name:
            return []
        up = (each for each in self.network.members.values() if each.node is not None and each.name == organization)
        return [attested(each.identity) for each in up if each.identity.peer_id not in self.cut]

    def peer(self, organization: str) -> Attested | None:
        return next(iter(self.nodes(organization)), None)

    def node(self, peer_id: str) -> Attested | None:
        found = (one for each in self.network.members.values() for one in self.nodes(each.name))
        return next((one for one in found if one.peer_id == peer_id), None)

    async def request(self, peer_id: str, payload: bytes, deadline_s: float) -> bytes:
        if peer_id in self.cut:
            raise LinkClosed("the link is cut")
        answer = await super().request(peer_id, payload, deadline_s)
        if peer_id in self.cut:  # it went down before the answer was here
            raise LinkClosed("the link was cut")
        return answer


class TwoNodes(Lab):
    """`count` organizations, of which `double` has two nodes: a member `double`, and one `double/n2`."""

    def __init__(self, home: Path, double: str, agents: Agents, *, count: int = 3) -> None:
        super().__init__(home, count)
        self.consortium = consortium(*names(count), name="two nodes", seconds=True)
        for name, member in self.members.items():
            member.identity = self.consortium.nodes[name]
        self.second = f"{double}/n2"
        there = home / "second"
        there.mkdir()
        self.members[self.second] = Member(self.consortium.seconds[double], there, policy(double), dict(agents))
        self.network = Network(self.members)
        #: PeerIds to which nobody has a link any more.
        self.cut: set[str] = set()

    def links(self, member: Member) -> Links:
        return ManyLinks(self.network, member, self.cut)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name in self.members if "/" not in name)

    def peer_id(self, name: str) -> str:
        return self.members[name].identity.peer_id
