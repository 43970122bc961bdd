"""Lazy push: peers outside the mesh are told what there is (IHAVE) and ask for what they lack (IWANT).

gossipsub-v1.0.md, "Gossip Emission"; gossipsub-v1.1.md, "Adaptive Gossip Dissemination", "Spam Protection Measures".
Beyond the specification, and unseen on the wire: a peer that is new, or for which something was dropped, is told at the
next heartbeat of everything that can be asked for, even if it is in the mesh. So a link that broke, or was too slow,
loses nothing that is not older than the cache.
"""

from __future__ import annotations

from collections.abc import Sequence

from comity_node.protocol.gossip_rpc import IHave
from comity_node.protocol.gossip_state import GossipPeer, RouterState


class LazyPush:
    """Tells peers what there is, and asks for what they say."""

    def __init__(self, state: RouterState) -> None:
        self._state = state

    def heartbeat(self, now_ms: int) -> None:
        """Count broken promises, and gossip."""
        state = self._state
        for peer in state.promises.broken(now_ms):
            state.counts["promises_broken"] += 1
            if peer in state.peers:
                state.peers[peer].behaviour += 1
        for topic in state.mesh:
            self._emit(topic, now_ms)
        self._repay(now_ms)

    def on_ihave(self, haves: Sequence[IHave], peer: GossipPeer, now_ms: int) -> None:
        """A peer says what it has: ask for what is not known here."""
        state, limits = self._state, self._state.params.limits
        if haves and peer.score(state.params.score, now_ms) < state.params.score.gossip_threshold:
            state.counts["gossip_ignored"] += 1
            return
        for have in haves:
            if peer.ihave_messages >= limits.ihave_messages or peer.ihave_ids >= limits.ihave_ids:
                state.counts["ihave_over_limit"] += 1
                return
            peer.ihave_messages += 1
            if have.topic in state.mesh:
                self._ask(have.ids, peer, now_ms)

    def on_iwant(self, ids: Sequence[bytes], peer: GossipPeer, now_ms: int) -> None:
        """A peer asks for messages: send those that are there, each so often and no more."""
        state, limits = self._state, self._state.params.limits
        if ids and peer.score(state.params.score, now_ms) < state.params.score.gossip_threshold:
            state.counts["gossip_ignored"] += 1
            return
        for message_id in ids:
            if peer.iwant_ids >= limits.iwant_ids or peer.iwant_bytes >= limits.iwant_bytes:
                state.counts["iwant_over_limit"] += 1
                peer.owed = True  # told again at the next heartbeat, it asks for the rest
                return
            entry = state.cache.get(message_id)
            if entry is None:
                continue
            peer.iwant_ids += 1
            if entry.count(peer.key) > state.params.retransmissions:
                state.counts["iwant_repeated"] += 1
                continue
            peer.iwant_bytes += len(entry.message.data)
            state.counts["sent_on_demand"] += state.out.send((peer.key,), entry.message)

    def _ask(self, ids: Sequence[bytes], peer: GossipPeer, now_ms: int) -> None:
        state = self._state
        wanted = [one for one in ids if one not in state.seen and not state.seen.is_replay(one) and not self._own(one)]
        # In random order, so that a peer that names too many does not choose which of them are asked for.
        wanted = state.chance.sample(wanted, min(len(wanted), state.params.limits.ihave_ids - peer.ihave_ids))
        if wanted:
            peer.ihave_ids += len(wanted)
            state.out.to(peer.key).iwant += wanted
            # The first in the list is the first that an honest peer sends, whatever it has to put off.
            state.promises.add(wanted[0], peer.key, now_ms + state.params.iwant_followup_ms)

    def _own(self, message_id: bytes) -> bool:
        return message_id.startswith(self._state.own)

    def _emit(self, topic: str, now_ms: int) -> None:
        """Tell some peers outside the mesh what came of late."""
        state, params = self._state, self._state.params
        ids = state.cache.ids(topic, windows=params.history_gossip, most=params.limits.rpc_ids)
        if not ids:
            return
        outside = [
            peer
            for peer in state.members.get(topic, ())
            if peer not in state.mesh[topic] and state.score(peer, now_ms) >= params.score.gossip_threshold
        ]
        have = IHave(topic, ids)
        for peer in state.choose(outside, max(params.d_lazy, int(len(outside) * params.gossip_factor))):
            if not state.peers[peer].owed:
                state.out.to(peer).ihave.append(have)

    def _repay(self, now_ms: int) -> None:
        """Tell those to whom something is owed of all that there is."""
        state, params = self._state, self._state.params
        for peer in state.peers.values():
            if not peer.owed or peer.score(params.score, now_ms) < params.score.gossip_threshold:
                continue
            peer.owed = False
            for topic in peer.topics:
                ids = state.cache.ids(topic, windows=params.history_length, most=params.limits.rpc_ids)
                if ids and topic in state.mesh:
                    state.out.to(peer.key).ihave.append(IHave(topic, ids))
