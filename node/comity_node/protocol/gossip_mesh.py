"""The mesh of each topic: who gets every message at once. GRAFT, PRUNE, back-off, and the heartbeat's repairs.

gossipsub-v1.0.md, "Mesh Maintenance"; gossipsub-v1.1.md, "PRUNE Backoff and Peer Exchange", "Outbound Mesh Quotas",
"Heartbeat Maintenance". Peer exchange is neither offered nor followed: members are found by their own means, and a
PRUNE is no way to make a node dial somebody. Opportunistic grafting is left out, as there are no delivery deficits (P3)
that a mesh could get stuck with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from comity_node.protocol.gossip_rpc import Prune
from comity_node.protocol.gossip_state import RouterState


@dataclass(slots=True)
class _Fanout:
    """Whom we publish to in a topic that we do not subscribe to."""

    last_ms: int
    peers: dict[bytes, None] = field(default_factory=dict)


class Mesh:
    """Keeps the meshes of a router's topics."""

    def __init__(self, state: RouterState) -> None:
        self._state = state
        self._fanout: dict[str, _Fanout] = {}

    def join(self, topic: str, now_ms: int) -> None:
        """Begin a mesh: with the fan-out's peers, then with others (JOIN)."""
        state, params = self._state, self._state.params
        state.mesh[topic] = {}
        fanout = self._fanout.pop(topic, None)
        first = [peer for peer in fanout.peers if self._may_graft(topic, peer, now_ms)] if fanout else []
        for peer in first[: params.d]:
            self._graft(topic, peer, now_ms)
        self._fill(topic, params.d, now_ms)

    def leave(self, topic: str, now_ms: int) -> None:
        """End a mesh, and tell those in it (LEAVE)."""
        for peer in list(self._state.mesh[topic]):
            self.prune(topic, peer, now_ms, self._state.params.unsubscribe_backoff_ms)
        del self._state.mesh[topic]

    def forget(self, peer: bytes) -> None:
        """A peer is gone."""
        for members in self._state.mesh.values():
            members.pop(peer, None)
        for fanout in self._fanout.values():
            fanout.peers.pop(peer, None)

    def forget_member(self, topic: str, peer: bytes) -> None:
        """A peer has left a topic."""
        self._remove(topic, peer)
        if topic in self._fanout:
            self._fanout[topic].peers.pop(peer, None)

    def on_graft(self, topics: Sequence[str], peer: bytes, now_ms: int) -> None:
        """A peer has put us into its mesh of these topics."""
        state, params = self._state, self._state.params
        sender = state.peers[peer]
        for topic in dict.fromkeys(topics):
            members = state.mesh.get(topic)
            if members is None or peer in members:
                continue  # no answer to a topic that is not ours: it would be a way to make us talk
            until_ms = state.backoffs.until(topic, peer)
            if now_ms < until_ms:
                pruned_ms = until_ms - params.prune_backoff_ms
                sender.behaviour += 2 if now_ms < pruned_ms + params.graft_flood_ms else 1
                state.counts["graft_too_early"] += 1
                self.prune(topic, peer, now_ms)
            elif state.score(peer, now_ms) < 0 or (len(members) >= params.d_hi and not sender.outbound):
                self.prune(topic, peer, now_ms)
            else:
                self._add(topic, peer, now_ms)

    def on_prune(self, prunes: Sequence[Prune], peer: bytes, now_ms: int) -> None:
        """A peer has taken us out of its mesh of these topics."""
        state, params = self._state, self._state.params
        for prune in prunes:
            if prune.topic in state.mesh:
                self._remove(prune.topic, peer)
                backoff_ms = min(prune.backoff_s * 1000 or params.prune_backoff_ms, params.max_backoff_ms)
                state.backoffs.add(prune.topic, peer, now_ms + backoff_ms)

    def prune(self, topic: str, peer: bytes, now_ms: int, backoff_ms: int | None = None) -> None:
        """Take a peer out of a mesh, or refuse to take it in, and tell it."""
        backoff_ms = self._state.params.prune_backoff_ms if backoff_ms is None else backoff_ms
        self._remove(topic, peer)
        self._state.backoffs.add(topic, peer, now_ms + backoff_ms)
        self._state.out.to(peer).prune.append(Prune(topic, backoff_ms // 1000))

    def heartbeat(self, now_ms: int) -> None:
        """Repair every mesh and the fan-out."""
        for topic in self._state.mesh:
            self._repair(topic, now_ms)
        for topic, fanout in list(self._fanout.items()):
            if now_ms - fanout.last_ms > self._state.params.fanout_ttl_ms:
                del self._fanout[topic]
            else:
                self._fill_fanout(topic, fanout, now_ms)

    def fanout(self, topic: str, now_ms: int) -> dict[bytes, None]:
        """Whom a message goes to in a topic that we do not subscribe to."""
        limits = self._state.params.limits
        fanout = self._fanout.setdefault(topic, _Fanout(now_ms))
        fanout.last_ms = now_ms
        self._fill_fanout(topic, fanout, now_ms)
        while len(self._fanout) > limits.topics:
            del self._fanout[min(self._fanout, key=lambda one: self._fanout[one].last_ms)]
        return fanout.peers

    def _repair(self, topic: str, now_ms: int) -> None:
        state, params = self._state, self._state.params
        members = state.mesh[topic]
        for peer in [peer for peer in members if state.score(peer, now_ms) < 0]:
            self.prune(topic, peer, now_ms)
        if len(members) < params.d_lo:
            self._fill(topic, params.d, now_ms)
        elif len(members) > params.d_hi:
            keep = self._keep(topic, now_ms)
            for peer in [peer for peer in members if peer not in keep]:
                self.prune(topic, peer, now_ms)
        missing = params.d_out - sum(state.peers[peer].outbound for peer in members)
        if missing > 0 and len(members) >= params.d_lo:
            self._fill(topic, len(members) + missing, now_ms, outbound=True)

    def _keep(self, topic: str, now_ms: int) -> set[bytes]:
        """Choose D of a mesh that is too large: the best by score, others at random, enough of them outbound."""
        state, params = self._state, self._state.params
        shuffled = state.chance.sample(list(state.mesh[topic]), len(state.mesh[topic]))
        best = sorted(shuffled, key=lambda peer: state.score(peer, now_ms), reverse=True)
        ranked = best[: params.d_score] + [peer for peer in shuffled if peer not in best[: params.d_score]]
        keep, rest = ranked[: params.d], ranked[params.d :]
        missing = params.d_out - sum(state.peers[peer].outbound for peer in keep)
        spare = [peer for peer in rest if state.peers[peer].outbound][: max(missing, 0)]
        while spare:  # the last of those that were kept and that we did not dial make room
            leaving = max(index for index, peer in enumerate(keep) if not state.peers[peer].outbound)
            keep[leaving] = spare.pop()
        return set(keep)

    def _fill(self, topic: str, wanted: int, now_ms: int, *, outbound: bool = False) -> None:
        state = self._state
        candidates = [
            peer
            for peer in state.members.get(topic, ())
            if self._may_graft(topic, peer, now_ms) and (state.peers[peer].outbound or not outbound)
        ]
        for peer in state.choose(candidates, wanted - len(state.mesh[topic])):
            self._graft(topic, peer, now_ms)

    def _fill_fanout(self, topic: str, fanout: _Fanout, now_ms: int) -> None:
        state, params = self._state, self._state.params
        floor = params.score.publish_threshold
        for peer in [peer for peer in fanout.peers if state.score(peer, now_ms) < floor]:
            del fanout.peers[peer]
        candidates = [
            peer
            for peer in state.members.get(topic, ())
            if peer not in fanout.peers and state.score(peer, now_ms) >= floor
        ]
        fanout.peers |= dict.fromkeys(state.choose(candidates, params.d - len(fanout.peers)))

    def _may_graft(self, topic: str, peer: bytes, now_ms: int) -> bool:
        """Whether a peer can be grafted; one heartbeat more than the back-off, so that it is over at the other end."""
        state = self._state
        if peer in state.mesh[topic] or state.score(peer, now_ms) < 0:
            return False
        until_ms = state.backoffs.until(topic, peer)
        return not until_ms or until_ms + state.params.heartbeat_ms <= now_ms

    def _graft(self, topic: str, peer: bytes, now_ms: int) -> None:
        self._add(topic, peer, now_ms)
        self._state.out.to(peer).graft.append(topic)

    def _add(self, topic: str, peer: bytes, now_ms: int) -> None:
        self._state.mesh[topic][peer] = None
        self._state.peers[peer].mesh_since[topic] = now_ms

    def _remove(self, topic: str, peer: bytes) -> None:
        self._state.mesh.get(topic, {}).pop(peer, None)
        if peer in self._state.peers:
            self._state.peers[peer].mesh_since.pop(topic, None)
