"""The console at `/`: static files of the package, and headers that keep them from other hosts.

The files are read once, when the application is made. The page is a client of the public API like any other.
"""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from fastapi import FastAPI, Request, Response

from service.errors import NotFound

FOLDER = Path(__file__).parent.parent / "web"
PAGE = "index.html"
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"


@dataclass(frozen=True, slots=True)
class File:
    """A static file; `tag` is its entity tag, a digest of the content."""

    content: bytes
    media_type: str
    tag: str


def add_console(app: FastAPI) -> None:
    """Add the page and its files."""
    files = {path.name: _read(path) for path in sorted(FOLDER.iterdir()) if path.suffix in MEDIA_TYPES}

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
    return File(content, MEDIA_TYPES[path.suffix], f'"{sha256(content).hexdigest()[:32]}"')


def _answer(request: Request, file: File) -> Response:
    """Answer with the file, or with 304 if the browser has it.

    Browsers ask again each time, so that a page and its scripts always are of the same version.
    """
    headers = {
        "ETag": file.tag,
        "Cache-Control": "no-cache",
        "Content-Security-Policy": POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
    if file.tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.media_type)
