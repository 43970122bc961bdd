"""`node.yaml`, read and checked."""

from __future__ import annotations

from comity_node.config.network import (
    DiscoveryConfig,
    MetricsConfig,
    NetworkConfig,
    RelayConfig,
    RendezvousConfig,
    TransportConfig,
)
from comity_node.config.node import (
    DEFAULT_CONTROL,
    FILE_NAME,
    ControlConfig,
    DatasetConfig,
    LimitsConfig,
    LogConfig,
    NodeConfig,
    TlsFiles,
    load,
)

__all__ = [
    "DEFAULT_CONTROL",
    "FILE_NAME",
    "ControlConfig",
    "DatasetConfig",
    "DiscoveryConfig",
    "LimitsConfig",
    "LogConfig",
    "MetricsConfig",
    "NetworkConfig",
    "NodeConfig",
    "RelayConfig",
    "RendezvousConfig",
    "TlsFiles",
    "TransportConfig",
    "load",
]
