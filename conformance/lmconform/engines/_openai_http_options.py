"""Options that need more than a table: the URL, lists, and commands of other regimes."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

OTHER_COMMAND = "command_"


def checked_url(url: str, remote: str) -> str:
    """The URL of a server. Raises ValueError for none, and for another machine's unless an option allows it."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"url={url} is no URL of a server; http://127.0.0.1:8000 would be one.")
    if remote != "allowed" and not _loopback(parts.hostname):
        raise ValueError(
            f"url={url} is on another machine, {parts.hostname}. Requests would leave this one; if that is meant, say"
            " remote=allowed."
        )
    return url


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def regime_name(option: str) -> str:
    """The regime that an option ``command_NAME`` names."""
    name = option.removeprefix(OTHER_COMMAND)
    if name == option or not name:
        raise ValueError(
            f"There is no option {option!r}. docs/engines/openai-http.md lists them; {OTHER_COMMAND}NAME is the command"
            " of a regime NAME."
        )
    return name.replace("_", "-")


def listed(option: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in (option or "").split(",") if word.strip())
