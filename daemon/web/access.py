"""Who may use the page, and that a request was meant: a check of host names, people, tokens, and forms' origins.

Three ways in, by configuration:

- loopback and nothing else set: whoever can reach loopback on this machine;
- `[web] token`: whoever shows it, as `Authorization: Bearer` or by the login form, which sets a cookie;
- `[web] user_header`: whom a reverse proxy at one of `trusted_proxies` names in that header; with `proxy_user` only
  a program of that account, where the proxy runs on this machine, as any local program can write a header.

Requests that change something must come from our own pages: a form token bound to the person, and `Origin` and
`Sec-Fetch-Site` where the browser sends them. The `Host` header must name us, so that another site's name that is made
to resolve to loopback (DNS rebinding) opens nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import pwd
import secrets
import time
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from starlette.requests import Request

from daemon.config.sections import Web, is_loopback
from daemon.web.owner import owner_of

COOKIE = "braingemma"
SAFE_METHODS = frozenset({"GET", "HEAD"})
OPEN_PATHS = ("/healthz", "/readyz", "/login", "/static/")
"""Paths that show nothing of anybody's work."""

How = Literal["loopback", "token", "proxy"]


@dataclass(frozen=True)
class Identity:
    """Who asks. `user` is empty where the configuration has no way to know."""

    how: How
    user: str = ""

    @property
    def named(self) -> str:
        """For the audit log."""
        return self.user or self.how

    @property
    def sees_names(self) -> bool:
        """Whether lists and the search name patients: not to whoever merely reaches loopback."""
        return self.how in ("token", "proxy")


class Refused(Exception):
    """The request must not be answered; `status` is the HTTP status, the text says what was expected."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Access:
    """The rules of one configuration."""

    web: Web
    _secret: bytes = field(default_factory=lambda: secrets.token_bytes(32))

    def check_host(self, request: Request) -> None:
        """The `Host` header must name us.

        Raises:
            Refused: it names something else.
        """
        name = _name(request.headers.get("host", ""))
        known = {self.web.host, *self.web.names}
        behind_proxy = bool(self.web.user_header) and self._from_trusted(request)
        if not (name in known or is_loopback(name) or (behind_proxy and not self.web.names)):
            raise Refused(421, f"this page is not called {name!r}: name it in [web] names")

    def identify(self, request: Request) -> Identity | None:
        """Who asks, or None where a token is needed.

        Raises:
            Refused: nobody who may.
        """
        token = self.web.token.get_secret_value()
        if token and self._shows(request):
            return Identity("token")
        if self.web.user_header:
            user = request.headers.get(self.web.user_header, "").strip()
            if user and self._from_trusted(request):
                return Identity("proxy", user[:64])
            if not token:
                raise Refused(403, "expected a person, named by the reverse proxy")
        if token:
            return None
        return Identity("loopback")

    def may_scrape(self, request: Request) -> bool:
        """Metrics hold nothing of patients: they are open to this machine and to the proxies."""
        return self._from_trusted(request) or is_loopback(_client(request))

    def check_meant(self, request: Request, identity: Identity, form_token: str) -> None:
        """A request that changes something must come from one of our own pages.

        Raises:
            Refused: it comes from elsewhere, or its form is not ours.
        """
        check_same_site(request)
        if self._shows_bearer(request):
            return  # a program's; browsers add Basic credentials by themselves, a bearer token never
        if not hmac.compare_digest(form_token, self.form_token(identity)):
            raise Refused(403, "the form is out of date: load the page again")

    def form_token(self, identity: Identity) -> str:
        """What our own forms carry; bound to the person and to this run of the service."""
        return self._digest(f"form {identity.how} {identity.user}")

    def session(self) -> str:
        """The cookie of a person who showed the token.

        It does not hold the token, and ends after `session_hours` and when the token changes.
        """
        return self._signed(int(time.time() + self.session_seconds))

    @property
    def session_seconds(self) -> int:
        """How long a session lasts."""
        return int(self.web.session_hours * 3600)

    def _signed(self, end: int) -> str:
        key = self.web.token.get_secret_value().encode()
        return f"{end}.{hmac.new(key, f'session until {end}'.encode(), hashlib.sha256).hexdigest()}"

    def _is_session(self, cookie: str) -> bool:
        """Whether it is a cookie of ours whose time is not over."""
        end = cookie.partition(".")[0]
        if not (end.isascii() and end.isdecimal() and len(end) < 12):
            return False
        return hmac.compare_digest(cookie.encode(), self._signed(int(end)).encode()) and time.time() < int(end)

    def is_token(self, shown: str) -> bool:
        """Whether it is the configured token, compared in constant time."""
        token = self.web.token.get_secret_value()
        return bool(token) and hmac.compare_digest(shown.encode(), token.encode())

    def _shows(self, request: Request) -> bool:
        return self._shows_bearer(request) or self._is_session(request.cookies.get(COOKIE, ""))

    def _shows_bearer(self, request: Request) -> bool:
        scheme, _, shown = request.headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and self.is_token(shown.strip())

    def _from_trusted(self, request: Request) -> bool:
        """Whether one of the named proxies asks; on this machine also: a program of its account."""
        client = _client(request)
        if client not in self.web.trusted_proxies:
            return False
        return not self.web.proxy_user or not is_loopback(client) or self._is_of_proxy_user(request)

    def _is_of_proxy_user(self, request: Request) -> bool:
        client, server = request.client, request.scope.get("server")
        if client is None or server is None:
            return False
        return owner_of((client.host, client.port), tuple(server)) == pwd.getpwnam(self.web.proxy_user).pw_uid

    def _digest(self, text: str) -> str:
        return hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest()


def check_same_site(request: Request) -> None:
    """A form must not come from another site's page, where the browser says whose it is.

    Raises:
        Refused: it does.
    """
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise Refused(403, "the form was sent by another site")
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host", ""):
        raise Refused(403, "the form was sent by another site")


def _client(request: Request) -> str:
    return request.client.host if request.client is not None else ""


def _name(host: str) -> str:
    """A `Host` header without its port."""
    return (urlsplit(f"//{host}").hostname or "") if host else ""
