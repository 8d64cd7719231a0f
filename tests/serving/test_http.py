"""HEAD, OPTIONS, status 404 and 405, lengths and content types of every path."""

from __future__ import annotations

import asyncio
import http.client
import json

import httpx
import pytest

from tests.serving.conftest import CARD, Client, serving
from tests.serving.fake import FakeEngine
from tpdm.serving.http.protocol import GenerationRequest
from tpdm.serving.http.settings import Settings
from tpdm.serving.reward_server import make_app as make_reward

GENERATIONS = "/v1/images/generations"
READ = (
    "/",
    "/openapi.json",
    "/v1/models",
    "/v1/models/tinyworld",
    "/healthz",
    "/readyz",
    "/metrics",
    "/static/page.js",
    "PICTURE",
)
METHODS = {
    **dict.fromkeys(READ, "GET, HEAD, OPTIONS"),
    "/v1/images/generations": "OPTIONS, POST",
    "/v1/images/edits": "OPTIONS, POST",
    "/v1/images/variations": "OPTIONS, POST",
    "/v1/requests/some": "DELETE, OPTIONS",
}


@pytest.fixture(scope="module")
def client():
    with serving(FakeEngine(), CARD, Settings()) as address, Client(address) as client:
        yield client


@pytest.fixture(scope="module")
def picture(client):
    url = client.ask("red circle", response_format="url", output_format="jpeg").json()["data"][0]["url"]
    return url.removeprefix(str(client.base_url).rstrip("/"))


@pytest.mark.parametrize("path", [*READ, "/nothing", "/v1/models/other", GENERATIONS])
def test_head_is_get_without_the_body(client, picture, path):
    path = picture if path == "PICTURE" else path
    head, get = client.head(path), client.get(path)
    volatile = {"date", "x-request-id", *(("content-length",) if path == "/metrics" else ())}
    assert head.status_code == get.status_code
    assert {name: value for name, value in head.headers.items() if name not in volatile} == {
        name: value for name, value in get.headers.items() if name not in volatile
    }
    assert int(get.headers["content-length"]) == len(get.content) > 0
    assert int(head.headers["content-length"]) > 0
    assert head.content == b""


def test_a_connection_can_be_reused_after_head(client):
    """A body in the answer to HEAD would be read as the next answer."""
    connection = http.client.HTTPConnection(client.base_url.host, client.base_url.port, timeout=60)
    for method in ("HEAD", "GET", "HEAD", "GET"):
        connection.request(method, "/v1/models")
        body = connection.getresponse().read()
        assert body == b"" if method == "HEAD" else json.loads(body)["object"] == "list"
    connection.close()


@pytest.mark.parametrize("path", METHODS)
def test_options_and_status_405_list_the_methods(client, picture, path):
    allowed = METHODS[path]
    path = picture if path == "PICTURE" else path
    options = client.options(path)
    assert (options.status_code, options.headers["allow"], options.content) == (204, allowed, b"")
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE"} - set(allowed.split(", ")):
        answer = client.request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
        assert answer.json()["error"]["message"] == f"{method} is not supported here. Use one of {allowed}."


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"])
@pytest.mark.parametrize("path", ["/nothing", "/v1", "/v1/chat/completions", "/images/generations"])
def test_status_404_has_the_shape_of_openais_api(client, method, path):
    answer = client.request(method, path)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/json"
    if method != "HEAD":
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=x", "text/plain", None])
def test_other_content_types_are_refused(client, kind):
    headers = {} if kind is None else {"content-type": kind}
    answer = client.post(GENERATIONS, content=b'{"prompt": "a"}', headers=headers)
    assert answer.status_code == 415
    named = "" if kind is None else kind.partition(";")[0]
    assert (
        f"The content type is '{named}'. Send the header Content-Type: application/json."
        in answer.json()["error"]["message"]
    )


def test_every_method_needs_the_token():
    with serving(FakeEngine(), CARD, Settings(token="s3cret")) as address, Client(address) as client:
        for method in ("GET", "HEAD", "OPTIONS", "DELETE"):
            assert client.request(method, "/v1/models").status_code == 401
        assert client.head("/healthz").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("HEAD", "/health", 200), ("GET", "/nothing", 404), ("GET", "/score", 405), ("POST", "/health", 405)],
)
def test_the_reward_server_answers_head_404_and_405(method, path, status):
    async def ask():
        transport = httpx.ASGITransport(make_reward(None))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.request(method, path)

    answer = asyncio.run(ask())
    assert answer.status_code == status
    assert ("allow" in answer.headers) == (status == 405)
    if status >= 400:
        assert answer.json() == {"error": f"{method} {path} does not exist. Use GET /health or POST /score."}


def test_the_schema_of_the_api_has_every_field(client):
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) == {
        GENERATIONS,
        "/v1/requests/{call_id}",
        "/v1/images/files/{name}",
        "/v1/models",
        "/v1/models/{name}",
        "/healthz",
        "/readyz",
        "/metrics",
    }
    body = schema["paths"][GENERATIONS]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert list(body["properties"]) == list(GenerationRequest.model_fields)
    assert body["required"] == ["prompt"]
