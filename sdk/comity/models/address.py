"""Where a model's server is, and the key it asks for."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from urllib.parse import urlsplit

from comity.errors import ConfigError

_MAX_URL = 2048
_MAX_KEY = 4096


def check_url(url: str, *, plain_http: bool) -> str:
    """Return `url` without a slash at its end.

    Args:
        url: up to and including `/v1`, or whatever comes before `/chat/completions`.
        plain_http: allow `http` to other machines than this one.

    Raises:
        ConfigError: it is no http or https URL, carries a user, a query or a fragment, or would send prompts and keys
            over a network in the clear.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"{url[:200]!r} is no URL: {error}") from error
    if len(url) > _MAX_URL or parts.scheme not in ("http", "https") or not host or not url.isprintable():
        raise ConfigError(f"{url[:200]!r} is no URL of a model's server: write https://host:port/v1")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ConfigError("the URL of a model's server has no user, query or fragment; a key comes from a file")
    if parts.scheme == "http" and not plain_http and not _is_loopback(host):
        raise ConfigError(f"http://{host} is in the clear on the network: use https, or say plain_http=True")
    return url.rstrip("/")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_key(file: Path | None, variable: str | None) -> str:
    """Return the key of a file or an environment variable; empty if neither is named.

    Raises:
        ConfigError: both are named, the file cannot be read or others may read it, the variable is not set, or what
            they hold is no key.
    """
    if file is not None and variable is not None:
        raise ConfigError("a model's key comes from a file or from the environment, not from both")
    if file is not None:
        where = str(file)
        try:
            with file.open("rb") as opened:
                if os.fstat(opened.fileno()).st_mode & 0o077:
                    raise ConfigError(f"{file} holds a key and can be read by others: chmod 600")
                text = opened.read(_MAX_KEY + 1).decode("ascii", "replace").strip()
        except OSError as error:
            raise ConfigError(f"cannot read the model's key in {file}: {error.strerror}") from error
    elif variable is not None:
        where = f"${variable}"
        text = os.environ.get(variable, "").strip()
    else:
        return ""
    if not text or len(text) > _MAX_KEY or not (text.isascii() and text.isprintable()) or " " in text:
        raise ConfigError(f"{where} holds no key")
    return text
