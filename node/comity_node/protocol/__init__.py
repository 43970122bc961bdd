"""Sans-IO protocol logic: no socket, no clock, no random; time and nonces are passed in."""
