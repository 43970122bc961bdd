"""Messages of libp2p's own protocols, as protobuf: what other implementations send and expect."""
