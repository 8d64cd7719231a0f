"""What HTTP promises of every address: HEAD, OPTIONS, 404 and 405, lengths, kinds of bodies."""

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


def test_after_head_the_connection_is_where_it_should_be(client):
    """A body that was sent all the same would be taken for the next answer."""
    connection = http.client.HTTPConnection(client.base_url.host, client.base_url.port, timeout=60)
    for method in ("HEAD", "GET", "HEAD", "GET"):
        connection.request(method, "/v1/models")
        body = connection.getresponse().read()
        assert body == b"" if method == "HEAD" else json.loads(body)["object"] == "list"
    connection.close()


@pytest.mark.parametrize("path", METHODS)
def test_options_and_refusals_say_which_methods_there_are(client, picture, path):
    allowed = METHODS[path]
    path = picture if path == "PICTURE" else path
    options = client.options(path)
    assert (options.status_code, options.headers["allow"], options.content) == (204, allowed, b"")
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE"} - set(allowed.split(", ")):
        answer = client.request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
        assert answer.json()["error"]["message"] == f"got {method}, expected one of {allowed} at this address"


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"])
@pytest.mark.parametrize("path", ["/nothing", "/v1", "/v1/chat/completions", "/images/generations"])
def test_nothing_at_an_address_is_said_in_openais_form(client, method, path):
    answer = client.request(method, path)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/json"
    if method != "HEAD":
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=x", "text/plain", None])
def test_another_kind_of_body_is_refused_by_its_name(client, kind):
    headers = {} if kind is None else {"content-type": kind}
    answer = client.post(GENERATIONS, content=b'{"prompt": "a"}', headers=headers)
    assert answer.status_code == 415
    named = "" if kind is None else kind.partition(";")[0]
    assert f"got the content type '{named}', expected application/json" in answer.json()["error"]["message"]


def test_a_token_is_asked_for_by_every_method():
    with serving(FakeEngine(), CARD, Settings(token="s3cret")) as address, Client(address) as client:
        for method in ("GET", "HEAD", "OPTIONS", "DELETE"):
            assert client.request(method, "/v1/models").status_code == 401
        assert client.head("/healthz").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("HEAD", "/health", 200), ("GET", "/nothing", 404), ("GET", "/score", 405), ("POST", "/health", 405)],
)
def test_so_does_the_server_of_a_reward(method, path, status):
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
