"""The HTTP client of a back-end: where it connects to, by what, and that it goes nowhere else."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from comity.errors import ConfigError, MissingExtra

if TYPE_CHECKING:
    import httpx


def open_client(
    url: str, key: str, ca_file: str | None, proxy: str | None, connect_s: float, kept: int
) -> httpx.AsyncClient:  # fmt: skip
    """Return a client for one URL, which connects to nothing yet.

    Args:
        url: where requests will go.
        key: that each has with it; empty: none.
        ca_file: the CA (PEM) of the server's certificate; None: those that httpx brings.
        proxy: an HTTP proxy; None: none, whatever the environment says.
        connect_s: seconds to connect.
        kept: connections that are kept while they have nothing to do.

    Raises:
        MissingExtra: httpx is not installed.
        ConfigError: the URL, the CA or the proxy is none.
    """
    try:
        import httpx
    except ModuleNotFoundError as error:
        raise MissingExtra("models", "httpx") from error
    headers = {"content-type": "application/json", "accept-encoding": "identity", "user-agent": "comity"}
    if key:
        headers["authorization"] = f"Bearer {key}"
    try:
        verify = True if ca_file is None else ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise ConfigError(f"{ca_file} holds no CA of a model's server: {error.strerror or error}") from error
    try:
        if not httpx.URL(url).host:
            raise ConfigError(f"{url[:200]!r} names no machine")
        return httpx.AsyncClient(
            headers=headers,
            verify=verify,
            trust_env=False,
            proxy=proxy,
            follow_redirects=False,
            timeout=httpx.Timeout(None, connect=connect_s),
            # Servers close idle connections after 5 s and more; one that is closed as we use it looks broken.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=kept, keepalive_expiry=2.0),
        )
    except (ValueError, ImportError, httpx.InvalidURL) as error:
        raise ConfigError(f"no way to the model's server, by its URL or the proxy: {error}") from error
