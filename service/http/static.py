"""The console at `/`: static files that come with the package, and the headers that keep them to themselves.

Read once, when the application is made. The page is a client of the public API like any other.
"""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from fastapi import FastAPI, Request, Response

from service.errors import NotFound

FOLDER = Path(__file__).parent.parent / "web"
PAGE = "index.html"
KINDS = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"


@dataclass(frozen=True, slots=True)
class File:
    content: bytes
    kind: str
    tag: str


def add_console(app: FastAPI) -> None:
    files = {path.name: _read(path) for path in sorted(FOLDER.iterdir()) if path.suffix in KINDS}

    async def page(request: Request) -> Response:
        return _answer(request, files[PAGE])

    async def file(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in files:
            raise NotFound("The console has no such file.")
        return _answer(request, files[name])

    app.add_route("/", page, include_in_schema=False)
    app.add_route("/console/{name}", file, include_in_schema=False)


def _read(path: Path) -> File:
    content = path.read_bytes()
    return File(content, KINDS[path.suffix], f'"{sha256(content).hexdigest()[:32]}"')


def _answer(request: Request, file: File) -> Response:
    """Asked for again each time, and sent only when it has changed: a page and its scripts are of one version."""
    headers = {
        "ETag": file.tag,
        "Cache-Control": "no-cache",
        "Content-Security-Policy": POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
    if file.tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.kind)
