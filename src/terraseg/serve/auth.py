"""API keys: who asks, how often they may, and from where."""

import hashlib
import hmac
import secrets
import time
from collections import defaultdict, deque
from dataclasses import dataclass, field

from sqlalchemy import select
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection

from terraseg.errors import ConfigError
from terraseg.serve.database import Database, Key
from terraseg.serve.http_errors import DeniedError, LimitError, NotThereError

LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")

ALONE = "local"
"""The user of a service without keys."""

COOKIE = "terraseg_key"

_WINDOW = 60.0
"""Seconds over which requests are counted."""

_FRESH = 1.0
"""Seconds for which known keys are not read again: a status call must be cheap."""

_FAILURES = 20
"""Wrong keys from one address in a window; then it has to wait."""


def add_key(database: Database, user: str) -> str:
    """Make a key of a user; it can't be read again.

    Raises:
        ConfigError: the name is empty, or has other characters than letters, digits, dot, dash and underscore.
    """
    if not user or not all(letter.isalnum() or letter in "._-" for letter in user) or len(user) > 64:
        raise ConfigError(f"{user!r} is not a user's name", expected="letters, digits, dot, dash and underscore")
    name, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    with database.writing() as session:
        session.add(Key(id=name, user=user, hash=_hash(secret), created=time.time()))
    return f"ts_{name}_{secret}"


def revoke_key(database: Database, name: str) -> None:
    """Revoke the key with an id.

    Raises:
        NotThereError: there is none.
    """
    with database.writing() as session:
        key = session.get(Key, name)
        if key is None:
            raise NotThereError(f"no key {name!r}", fix="`terraseg serve keys list` shows the ids")
        key.revoked = key.revoked or time.time()


def list_keys(database: Database) -> list[Key]:
    """All keys, the oldest first."""
    with database.reading() as session:
        return list(session.scalars(select(Key).order_by(Key.created)))


def _hash(secret: str) -> str:
    """A plain hash is enough: the secret has 256 random bits, which nobody can try out."""
    return hashlib.sha256(secret.encode()).hexdigest()


@dataclass
class Gate:
    """Finds the user of a request.

    Attributes:
        database: with the keys.
        alone: whether requests without a key are allowed while there is no key at all.
        most: requests of one user in a minute.
    """

    database: Database
    alone: bool
    most: int
    _seen: dict[str, deque[float]] = field(default_factory=lambda: defaultdict(deque))
    _keys: dict[str, Key] = field(default_factory=dict)
    _read: float = -_FRESH

    async def user(self, request: HTTPConnection) -> str:
        """The user who asks. A key that was revoked is wrong within a second.

        Raises:
            DeniedError: no key or a wrong one, or a web page of another site asks.
            LimitError: too many requests, or too many wrong keys.
        """
        origin, host = request.headers.get("origin"), request.headers.get("host", "")
        if origin is not None and origin.partition("://")[2] != host:
            raise DeniedError("the request comes from another web page", expected="the SDK, or the service's own page")
        given = request.headers.get("authorization", "").removeprefix("Bearer ") or request.cookies.get(COOKIE, "")
        now = time.monotonic()
        if now - self._read > _FRESH:
            await run_in_threadpool(self._read_keys)
        if not given and self.alone and not self._keys:
            # Otherwise a web page could reach this service by a host name that resolves to this machine.
            if host.rpartition(":")[0] not in LOOPBACK and host not in LOOPBACK:
                raise DeniedError(f"the request is for host {host!r}", expected="127.0.0.1 or localhost")
            return ALONE
        address = request.client.host if request.client else ""
        failures = self._recent(f"wrong {address}")
        if len(failures) >= _FAILURES:
            raise LimitError("too many wrong keys from this address", fix=f"wait {_WINDOW:g} s")
        user = self._user_of(given)
        if user is None and given and self._read < now:  # a key that was made in this second
            await run_in_threadpool(self._read_keys)
            user = self._user_of(given)
        if user is None:
            failures.append(time.monotonic())
            fix = "give the key as api_key, or ask the person who runs the service for one: `terraseg serve keys add`"
            raise DeniedError("the API key is wrong or revoked" if given else "the request has no API key", fix=fix)
        asked = self._recent(f"user {user}")
        if len(asked) >= self.most:
            raise LimitError(f"more than {self.most} requests in {_WINDOW:g} s", fix="wait, or ask less often")
        asked.append(time.monotonic())
        return user

    def _recent(self, who: str) -> deque[float]:
        times, start = self._seen[who], time.monotonic() - _WINDOW
        while times and times[0] < start:
            times.popleft()
        if len(self._seen) > 10_000:  # addresses of long ago
            self._seen = defaultdict(
                deque, {name: each for name, each in self._seen.items() if each and each[-1] > start}
            )
            self._seen[who] = times
        return times

    def _read_keys(self) -> None:
        now = time.monotonic()
        self._keys = {key.id: key for key in list_keys(self.database)}
        self._read = now

    def _user_of(self, given: str) -> str | None:
        name, _, secret = given.removeprefix("ts_").partition("_")
        key = self._keys.get(name)
        known = key.hash if key and key.revoked is None else "0" * 64
        matches = hmac.compare_digest(_hash(secret), known)  # takes as long for an unknown id
        return key.user if key and matches else None
