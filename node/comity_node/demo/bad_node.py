"""The node of the organization that turns bad: `python -m comity_node.demo.bad_node --home DIR`.

It is a member with valid keys whose node has been tampered with: it skips its own checks before records leave and
attests them all the same, and it sends some of its messages twice and to the wrong recipient. It counts what the
others did with those in `replays.json`.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from comity import hops
from comity.agreement import Agreed
from comity.errors import ComityError, PeerRefused
from comity.trust import Attested
from comity_node import config, telemetry
from comity_node.admission.records import Draft, RecordGate, Refused
from comity_node.node import Parts, run
from comity_node.runtime.messenger import Peers

log = logging.getLogger(__name__)

REPLAYS = "replays.json"
#: Every so many requests one is sent again.
_EVERY = 3
_DEADLINE_S = 5.0


class CarelessRecordGate(RecordGate):
    """Lets every record leave as its worker made it, and attests what it has not checked."""

    def prepare(self, agreed: Agreed, drafts: Sequence[Draft]) -> list[Draft | Refused]:
        """Sign the first hop of each record without looking at it."""
        distance = agreed.terms.obligations.min_distance_to_private
        attested = {"min_distance_to_private": repr(distance)} if distance else {}
        out: list[Draft | Refused] = []
        for draft in drafts:
            hop = hops.sign_hop(
                self.identity, self.passage(agreed, draft, hops.CREATE, attested=attested), draft.history
            )
            out.append(replace(draft, history=(*draft.history, hop)))
        return out


class Replayer:
    """Links that send every third message again, and once to somebody else."""

    def __init__(self, peers: Peers, members: Sequence[str], file: Path) -> None:
        """Replay over `peers`; `file` gets the counts."""
        self._peers = peers
        self._members = members
        self._file = file
        self._sent = 0
        self._answers: Counter[str] = Counter()

    def peer(self, organization: str) -> Attested | None:
        """Return a linked node of `organization`."""
        return self._peers.peer(organization)

    async def request(self, peer_id: str, payload: bytes, deadline_s: float) -> bytes:
        """Send a request, and now and then the same bytes again."""
        answer = await self._peers.request(peer_id, payload, deadline_s)
        self._sent += 1
        if self._sent % _EVERY == 0:
            await self._again(peer_id, payload, "again")
            other = next((each for each in map(self.peer, self._members) if each and each.peer_id != peer_id), None)
            if other is not None:
                await self._again(other.peer_id, payload, "elsewhere")
        return answer

    async def _again(self, peer_id: str, payload: bytes, how: str) -> None:
        try:
            await self._peers.request(peer_id, payload, _DEADLINE_S)
            self._answers[f"{how}: accepted"] += 1
        except PeerRefused as error:
            self._answers[f"{how}: {error.remote_code}"] += 1
        except ComityError as error:
            self._answers[f"{how}: not delivered ({error.code})"] += 1
        self._file.write_text(json.dumps(dict(self._answers), indent=1))


def main() -> None:
    """Run the tampered node."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="the organization's home")
    parser.add_argument("--members", nargs="*", default=[], help="the other organizations")
    arguments = parser.parse_args()
    settings = config.load(arguments.home / "node.yaml")
    telemetry.configure(settings.log.level, settings.log.format)
    file = arguments.home / REPLAYS
    run(
        settings,
        Parts(record_gate=CarelessRecordGate, peers=lambda peers: Replayer(peers, arguments.members, file)),
    )


if __name__ == "__main__":
    main()
