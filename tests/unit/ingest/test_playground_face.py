"""How the playground is served: what may be kept for how long, and what the page may do."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from services.ingest.faces import playground
from services.ingest.faces.context import translate_errors


@pytest.fixture
def built(tmp_path: Path) -> Path:
    folder = tmp_path / "playground"
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_text("<!doctype html><title>Sluice</title>")
    (folder / "assets" / "index-Ab3.js").write_text("1")
    (folder / "assets" / "geist-Ab3.woff2").write_bytes(b"font")
    (folder / "assets" / "effects-Ab3.webp").write_bytes(b"picture")
    (folder / "secret.js").write_text("2")
    (folder / "assets" / ".env").write_text("3")
    return folder


async def get(folder: Path, path: str, method: str = "GET") -> httpx.Response:
    app = FastAPI()
    translate_errors(app)
    app.include_router(playground.router(folder))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return await client.request(method, path)


@pytest.mark.parametrize("path", ["/", "/watch/pbk_1"])
async def test_the_page_is_asked_for_each_time_and_may_talk_to_its_own_server_only(
    built: Path, path: str
) -> None:
    answer = await get(built, path)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.headers["cache-control"] == "no-cache"
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["connect-src"] == "'self'"
    assert not [words for words in policy.values() if "unsafe" in words or "http" in words or "*" in words]
    assert "camera=(self)" in answer.headers["permissions-policy"]
    assert answer.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("index-Ab3.js", "text/javascript"),
        ("geist-Ab3.woff2", "font/woff2"),
        ("effects-Ab3.webp", "image/webp"),
    ],
)
async def test_assets_are_kept_for_ever_and_say_what_they_are(built: Path, name: str, kind: str) -> None:
    answer = await get(built, f"/assets/{name}")
    assert answer.status_code == 200
    assert answer.headers["content-type"].partition(";")[0] == kind
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "immutable" in answer.headers["cache-control"]


@pytest.mark.parametrize(
    "path", ["/assets/gone.js", "/assets/..%2Fsecret.js", "/assets/.env", "/assets/%2e%2e", "/assets/"]
)
async def test_what_was_not_built_is_not_there(built: Path, path: str) -> None:
    answer = await get(built, path)
    assert answer.status_code == 404
    assert answer.json()["success"] is False


async def test_a_head_is_answered_without_a_body(built: Path) -> None:
    answer = await get(built, "/", "HEAD")
    assert (answer.status_code, answer.content) == (200, b"")


async def test_a_page_that_was_not_built_says_how_to_build_it(tmp_path: Path) -> None:
    answer = await get(tmp_path, "/")
    assert answer.status_code == 404
    assert "make playground" in answer.text
    assert "default-src 'self'" in answer.headers["content-security-policy"]


async def test_a_page_that_is_built_later_is_served_then(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<!doctype html><title>Sluice</title>")
    assert (await get(tmp_path, "/")).status_code == 200
