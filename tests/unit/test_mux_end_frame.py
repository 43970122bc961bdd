"""How the end of a stream leaves: js-libp2p loses the data of a frame that carries FIN, too (seen with 3.3.11).

It looks at the flag before the data. While it still waits for the agreement on the stream's protocol, whatever came
with the agreement is put back onto a stream that it takes for closed then, and opening the stream fails.
"""

from __future__ import annotations

import struct

import pytest

from comity_node.transport.yamux import INITIAL_WINDOW, MuxLimits, Yamux

DATA, UPDATE = 0, 1
FIN = 4
HEADER = struct.Struct(">BBHII")


def frames(data: bytes) -> list[tuple[int, int, int, int]]:
    """Kind, flags, stream and length of each frame."""
    found = []
    while data:
        _, *header = HEADER.unpack_from(data)
        found.append(tuple(header))
        data = data[HEADER.size + (header[3] if header[0] == DATA else 0) :]
    return found


def answering(data: bytes, *, finish: str) -> Yamux:
    mux = Yamux(initiator=False, limits=MuxLimits())
    mux.receive(HEADER.pack(0, UPDATE, 1, 1, 0))
    mux.data_to_send()
    mux.send(1, data)
    getattr(mux, finish)(1)
    return mux


@pytest.mark.parametrize("finish", ["end", "close"])
@pytest.mark.parametrize("size", [1, 1000, 64 * 1024, 100_000, INITIAL_WINDOW])
def test_the_end_leaves_with_the_last_data_but_in_a_frame_of_its_own(size: int, finish: str) -> None:
    mux = answering(bytes(size), finish=finish)
    batches = []
    while batch := mux.data_to_send(16 * 1024):
        batches.append(frames(batch))
    sent = [frame for batch in batches for frame in batch]
    assert sum(length for kind, _, _, length in sent if kind == DATA) == size
    assert [flags for kind, flags, _, _ in sent if kind == DATA] == [0] * (len(sent) - 1)
    assert sent[-1] == (UPDATE, FIN, 1, 0)
    assert batches[-1][-2][0] == DATA  # in one piece with them: it costs no write of its own
    assert mux.metrics().bytes_sent == size + HEADER.size * (len(sent) + 1)  # and the acknowledgement before
    assert mux.metrics().frames_sent == len(sent) + 1
