"""The console's files: page, modules and styles as they lie in `web`, and what a browser lets them do."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

WEB = Path(__file__).parent / "web"
PAGE = "index.html"
#: Below which path the page finds its modules and styles.
PREFIX = "/console"
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
#: What a page of the console may do: run its own modules and ask this server, nothing else.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class _File:
    """One file, read once."""

    content: bytes
    kind: str
    tag: str

    @classmethod
    def read(cls, path: Path) -> _File:
        content = path.read_bytes()
        return cls(content, _KINDS[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')

    async def __call__(self, request: Request) -> Response:
        """Send it, unless the browser has it."""
        headers = {**HEADERS, "etag": self.tag}
        if request.headers.get("if-none-match") == self.tag:
            return Response(status_code=304, headers=headers)
        return Response(self.content, media_type=self.kind, headers=headers)


def routes() -> list[Route]:
    """The page at `/`, and each other file below PREFIX: a table made once, so that no path leads out."""
    found = {path.relative_to(WEB).as_posix(): path for path in sorted(WEB.rglob("*")) if path.is_file()}
    page = _File.read(found.pop(PAGE))
    files = {name: _File.read(path) for name, path in found.items()}
    return [
        Route("/", page.__call__, methods=["GET"]),
        *(Route(f"{PREFIX}/{name}", file.__call__, methods=["GET"]) for name, file in files.items()),
    ]
