"""Who may use the server: hosts, origins, keys, addresses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from edgespec.errors import SettingError
from edgespec.server.app import application
from edgespec.server.security import require_safe
from tests.fake_server import fake_pipeline, service_of

KEY = "a-long-secret"


@pytest.fixture
def client(tmp_path: Path, request: pytest.FixtureRequest) -> TestClient:
    options: dict[str, Any] = getattr(request, "param", {})
    return TestClient(application(service_of(fake_pipeline(tmp_path)), **options), base_url="http://127.0.0.1:8012")


def status(client: TestClient, path: str = "/v1/models", **headers: str) -> int:
    return client.get(path, headers=headers).status_code


@pytest.mark.parametrize("host", ["127.0.0.1:8012", "localhost", "LOCALHOST:1", "[::1]:8012", "127.0.0.2"])
def test_names_of_this_machine_are_let_in(client: TestClient, host: str) -> None:
    assert status(client, host=host) == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "evil@127.0.0.1", "", "::::", "10.0.0.1"],
)
def test_a_name_that_points_here_is_not(client: TestClient, host: str) -> None:
    """DNS rebinding: the page's own name resolves to 127.0.0.1, and the browser sends it as the Host."""
    answer = client.get("/v1/models", headers={"host": host})
    assert answer.status_code == 403 and answer.json()["error"]["type"] == "permission_error"


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:9999", "https://localhost", "file://", "http://[", "//"]
)
def test_pages_of_other_origins_are_not(client: TestClient, origin: str) -> None:
    assert status(client, origin=origin) == 403
    preflight = client.options("/v1/chat/completions", headers={"origin": origin})
    assert preflight.status_code == 403 and "access-control-allow-origin" not in preflight.headers
    sent = client.post("/v1/chat/completions", content=b'{"messages":[]}', headers={"origin": origin})
    assert sent.status_code == 403


def test_the_servers_own_page_is_let_in(client: TestClient) -> None:
    assert status(client, origin="http://127.0.0.1:8012") == 200


@pytest.mark.parametrize("client", [{"origins": ["http://page.example"], "hosts": ["nas.local"]}], indirect=True)
def test_pages_and_names_can_be_allowed(client: TestClient) -> None:
    assert status(client, host="nas.local:8012") == 200
    answer = client.get("/v1/models", headers={"origin": "http://page.example"})
    assert answer.headers["access-control-allow-origin"] == "http://page.example" and answer.headers["vary"] == "Origin"
    preflight = client.options(
        "/v1/chat/completions",
        headers={
            "origin": "http://page.example",
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type",
        },
    )
    assert preflight.status_code == 204
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    assert status(client, origin="http://other.example") == 403


@pytest.mark.parametrize("client", [{"origins": ["http://page.example"], "api_key": KEY}], indirect=True)
def test_an_allowed_page_sends_the_headers_of_its_client_and_reads_refusals(client: TestClient) -> None:
    wanted = "authorization,content-type,x-stainless-arch,x-stainless-retry-count"
    asks = {"origin": "http://page.example", "access-control-request-method": "POST"}
    preflight = client.options("/v1/models", headers=asks | {"access-control-request-headers": wanted})
    assert preflight.status_code == 204 and preflight.headers["access-control-allow-headers"] == wanted
    for path, code in (("/v1/models", 401), ("/app/chats", 403)):
        answer = client.get(path, headers={"origin": "http://page.example"})
        assert answer.status_code == code
        assert answer.headers["access-control-allow-origin"] == "http://page.example"
        other = client.get(path, headers={"origin": "http://other.example"})
        assert other.status_code == 403 and "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize("client", [{"origins": ["http://page.example"]}], indirect=True)
def test_a_page_that_may_ask_may_not_read_the_chats(client: TestClient) -> None:
    assert status(client, "/v1/models", origin="http://page.example") == 200
    for path in ("/app/chats", "/app/export"):
        assert status(client, path, origin="http://page.example") == 403
        assert status(client, path, origin="http://127.0.0.1:8012") == 404  # this application has no page


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_picture_on_a_page_of_others_loads_no_model(client: TestClient, site: str) -> None:
    """It has no Origin, as its page cannot read the answer."""
    sent = {"sec-fetch-site": site, "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}
    assert status(client, "/props?model=tiny", **sent) == 403
    link = sent | {"sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert (status(client, "/props?model=tiny", **link), status(client, "/", **link)) == (403, 200)
    assert status(client, "/", **link | {"sec-fetch-dest": "iframe"}) == 403
    for own in ("same-origin", "none"):
        assert status(client, "/props?model=tiny", **sent | {"sec-fetch-site": own}) == 200


@pytest.mark.parametrize("client", [{"others_reach": True, "hosts": ["nas"]}], indirect=True)
def test_other_machines_use_numbers_or_names_that_are_known(client: TestClient) -> None:
    for host in ("192.168.1.2:8012", "[fd00::1]:8012", "nas:8012", "127.0.0.1"):
        assert status(client, host=host) == 200
        assert status(client, host=host, origin=f"http://{host}") == 200
    for host in ("evil.example:8012", "192.168.1.2.evil.example"):
        assert status(client, host=host) == status(client, host=host, origin=f"http://{host}") == 403


@pytest.mark.parametrize("client", [{"api_key": KEY}], indirect=True)
def test_a_key_is_asked_for(client: TestClient) -> None:
    assert status(client, authorization=f"Bearer {KEY}") == status(client, **{"x-api-key": KEY}) == 200
    assert status(client, "/health") == status(client, "/") == 200  # the page asks its user for the key
    assert status(client, "/app/chats") == 401
    for wrong in ("", "Bearer", f"Bearer {KEY}x", f"Basic {KEY}", "Bearer \u00e9"):
        answer = client.get("/v1/models", headers={b"authorization": wrong.encode()})
        assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"


def test_other_machines_need_a_key_or_a_word() -> None:
    for host in ("127.0.0.1", "::1", "localhost"):
        require_safe(host, None, insecure=False)
    for host in ("0.0.0.0", "::", "192.168.1.2", "nas.local"):
        with pytest.raises(SettingError, match="other machines can reach"):
            require_safe(host, None, insecure=False)
        require_safe(host, KEY, insecure=False)
        require_safe(host, None, insecure=True)
    for short in ("", "short", "ключключ"):
        with pytest.raises(SettingError, match="API key") as error:
            require_safe("0.0.0.0", short, insecure=False)
        assert not short or short not in str(error.value)
