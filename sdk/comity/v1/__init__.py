"""Generated protobuf messages and gRPC services of `proto/comity/v1` (do not edit; `make gen`)."""
