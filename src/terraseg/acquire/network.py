"""Which network errors another attempt may cure."""

import requests
from urllib3.exceptions import ConnectTimeoutError, MaxRetryError, NameResolutionError, NewConnectionError

CONNECT_TIMEOUT = 8.0
"""Seconds until a connection counts as impossible."""


def no_connection(error: requests.RequestException) -> str | None:
    """Why there is no connection to a server at all, so that trying again is of no use; None for other errors."""
    wrapped = error.args[0] if error.args else None
    reason = wrapped.reason if isinstance(wrapped, MaxRetryError) else wrapped
    if isinstance(reason, NameResolutionError):
        return "its name can't be resolved"
    if isinstance(reason, NewConnectionError) and "refused" in str(reason):
        return "the connection is refused"
    if isinstance(reason, (NewConnectionError, ConnectTimeoutError)):
        return "it can't be reached"
    return None
