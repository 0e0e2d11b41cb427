"""The served files of the console: complete, small, with the right types, without requests to other hosts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from service.http.static import FOLDER
from tests.support.service_app import Service, assert_problem

pytestmark = pytest.mark.anyio

FILES = sorted(path for path in FOLDER.iterdir() if path.is_file())
MAX_BYTES = 300 * 1024
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


def address(path: Path) -> str:
    return "/" if path.name == "index.html" else f"/console/{path.name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
async def test_every_file_is_served_with_its_type_and_a_strict_policy(service: Service, path: Path) -> None:
    answer = await service.client.get(address(path))
    assert (answer.status_code, answer.content) == (200, path.read_bytes())
    assert answer.headers["content-type"].partition(";")[0] == MEDIA_TYPES[path.suffix]
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'self';")
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_an_unchanged_file_is_not_sent_again(service: Service) -> None:
    first = await service.client.get("/")
    assert first.headers["cache-control"] == "no-cache"
    again = await service.client.get("/", headers={"if-none-match": f'W/"other", {first.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    assert (await service.client.get("/", headers={"if-none-match": '"other"'})).status_code == 200


@pytest.mark.parametrize("name", ["nothing.js", "..%2Fapp.py", "%2e%2e/app.py", "screenshots", "console.py"])
async def test_no_other_file_of_the_package_is_served(service: Service, name: str) -> None:
    assert_problem(await service.client.get(f"/console/{name}"), 404, "not_found")


async def test_the_page_accepts_no_post(service: Service) -> None:
    assert (await service.client.head("/")).status_code == 200
    assert_problem(await service.client.post("/", json={}), 405, "method_not_allowed")


async def test_the_api_does_not_list_the_page(service: Service) -> None:
    paths = (await service.client.get("/openapi.json")).json()["paths"]
    assert "/" not in paths
    assert not [path for path in paths if path.startswith("/console")]
    assert "/v1/explain/sentiment" in paths


def test_the_console_is_small() -> None:
    assert sum(path.stat().st_size for path in FILES) < MAX_BYTES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_names_another_host(path: Path) -> None:
    text = path.read_text(encoding="utf-8").replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?://|[\"'(]//|data:", text)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_parses_markup_or_code(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text)
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=", text)


def test_every_file_in_a_reference_exists() -> None:
    named = {
        name
        for path in FILES
        for name in re.findall(r'(?:"/console/|from "\./)([\w.]+)"', path.read_text(encoding="utf-8"))
    }
    assert named == {path.name for path in FILES} - {"index.html"}


def test_every_element_that_a_script_queries_is_in_the_page() -> None:
    page = (FOLDER / "index.html").read_text(encoding="utf-8")
    ids = set(re.findall(r'\bid="([\w-]+)"', page))
    for path in FOLDER.glob("*.js"):
        assert set(re.findall(r'\$\("([\w-]+)"\)', path.read_text(encoding="utf-8"))) <= ids
