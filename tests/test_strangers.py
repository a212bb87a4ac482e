"""A web page of another origin, and one under a name that resolves to 127.0.0.1, reads and starts nothing of `up`.

Each attack is made in a real browser, as docs/security.md lists them.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from browsing import browser, shows
from playwright.sync_api import Browser, Page, expect
from servers import Up, started, until

from tunewright.artifacts import Base

STRANGER = "evil.test"
# Every way in which a page can send a request. Opaque answers show a page nothing; what they did, the servers show.
ATTACKS = """
async ({prefect, mlflow}) => {
  const flow = JSON.stringify({name: "stranger"});
  const experiment = JSON.stringify({name: "stranger"});
  const api = `${prefect}/api`, tracking = `${mlflow}/api/2.0/mlflow`;
  const artifact = `${mlflow}/api/2.0/mlflow-artifacts/artifacts/stranger`;
  const said = {};
  const attack = async (name, url, options) => {
    try {
      const answer = await fetch(url, options);
      said[name] = answer.type === "opaque" ? "opaque" : answer.status;
    } catch (error) { said[name] = "blocked"; }
  };
  await attack("prefect read", `${api}/admin/version`);
  await attack("prefect filter", `${api}/flows/filter`, {method: "POST", body: new Blob(["{}"])});
  await attack("prefect json", `${api}/flows/`,
    {method: "POST", body: flow, headers: {"content-type": "application/json"}});
  await attack("prefect text", `${api}/flows/`, {method: "POST", body: flow});
  await attack("prefect text unseen", `${api}/flows/`, {method: "POST", body: flow, mode: "no-cors"});
  await attack("prefect untyped unseen", `${api}/flows/`, {method: "POST", body: new Blob([flow]), mode: "no-cors"});
  const guessed = {authorization: "Basic YWRtaW46cGFzcw==", "content-type": "application/json"};
  await attack("prefect password", `${api}/flows/`, {method: "POST", body: flow, headers: guessed});
  await attack("mlflow read", `${tracking}/experiments/search?max_results=9`);
  await attack("mlflow json", `${tracking}/experiments/create`,
    {method: "POST", body: experiment, headers: {"content-type": "application/json"}});
  await attack("mlflow text unseen", `${tracking}/experiments/create`,
    {method: "POST", body: experiment, mode: "no-cors"});
  await attack("mlflow artifact", artifact, {method: "PUT", body: "stranger"});
  await attack("mlflow assistant", `${mlflow}/ajax-api/3.0/mlflow/assistant/config`);
  for (const path of ["events/in", "events/out", "logs/out"])
    for (const protocol of ["prefect", undefined])
      said[`socket ${path} ${protocol}`] = await new Promise(done => {
        const socket = new WebSocket(`${api.replace("http", "ws")}/${path}`, protocol ?? []);
        socket.onopen = () => {
          socket.send(JSON.stringify({type: "auth", token: null}));
          socket.send(JSON.stringify({type: "filter", filter: {}}));
          if (protocol === undefined) setTimeout(() => done("open"), 1000);
        };
        socket.onmessage = message => done(message.data);
        socket.onclose = () => done("closed");
      });
  return said;
}
"""
EDITOR = "https://cdn.jsdelivr.net/npm/monaco-editor@0.55.1/min/vs/loader.js"  # which MLflow would load for its editor
LOADED = """
address => new Promise(done => {
  document.addEventListener("securitypolicyviolation", () => done("refused"));
  const script = document.createElement("script");
  script.onload = script.onerror = () => setTimeout(() => done("asked for"), 500);
  script.src = address;
  document.head.append(script);
})
"""
REFUSED = {400, 401, 403, 404, "blocked", "opaque", "closed"}


@pytest.fixture(scope="module")
def up(tiny_base: Base, ready: tuple[Path, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with started(tmp_path_factory.mktemp("strangers"), tiny_base, made=ready) as up:
        yield up


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    # Chromium asks the person before a page reaches into the local network; not all browsers do, so it may here.
    options = (f"--host-resolver-rules=MAP {STRANGER} 127.0.0.1", "--disable-features=LocalNetworkAccessChecks")
    with browser(*options) as chromium:
        yield chromium


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    with chromium.new_context() as context:
        yield context.new_page()


def visit(page: Page, origin: str) -> None:
    """Opens a page of a stranger there, as his own server would have answered before the name was another's."""
    page.route(f"{origin}/", lambda route: route.fulfill(body="<!doctype html>", content_type="text/html"))
    page.goto(f"{origin}/")


def nothing_happened(up: Up) -> None:
    flows = up.ask("POST", "/flows/filter", json={})
    assert "stranger" not in {flow["name"] for flow in flows}
    assert {flow["name"] for flow in flows} >= {"finetune"}  # else nothing was asked for
    assert up.ask("POST", "/flow_runs/filter", json={}) == []
    assert not list(up.home.rglob("stranger"))
    assert "stranger" not in up.experiments()


@pytest.mark.parametrize("origin", [f"http://{STRANGER}", "http://127.0.0.1:1", "http://localhost:1"])
def test_a_page_of_another_origin_reads_and_starts_nothing(origin: str, up: Up, page: Page) -> None:
    visit(page, origin.replace(":1", f":{up.ports[0] ^ 1}") if origin.endswith(":1") else origin)
    said: dict[str, Any] = page.evaluate(ATTACKS, {"prefect": up.addresses.prefect, "mlflow": up.addresses.mlflow})
    assert len(said) == 18 and set(said.values()) <= REFUSED, said
    nothing_happened(up)


@pytest.mark.parametrize("port", [0, 1], ids=["prefect", "mlflow"])
def test_a_page_under_a_name_that_resolves_to_this_machine_reads_and_starts_nothing(
    port: int, up: Up, page: Page
) -> None:
    names = [f"http://{STRANGER}:{each}" for each in up.ports]
    visit(page, names[port])
    said: dict[str, Any] = page.evaluate(ATTACKS, {"prefect": names[0], "mlflow": names[1]})
    assert len(said) == 18 and set(said.values()) <= REFUSED, said
    nothing_happened(up)


@pytest.mark.parametrize("path", ["/", "/v2", "/tunewright", "/ui-settings", "/api/health", "/openapi.json", "/docs"])
def test_not_even_the_pages_are_served_under_another_name(path: str, up: Up, page: Page) -> None:
    answer = page.goto(f"http://{STRANGER}:{up.ports[0]}{path}")
    assert answer and answer.status == 400


def test_no_other_page_shows_those_of_prefect_in_a_frame(up: Up, page: Page) -> None:
    visit(page, f"http://{STRANGER}")
    page.set_content(f'<iframe src="{up.addresses.prefect}/v2"></iframe>')
    page.wait_for_timeout(1000)
    assert page.frames[1].url == "chrome-error://chromewebdata/"


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_the_pages_of_prefect_reach_no_other_server_and_work(name: str, up: Up, page: Page) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    refused: list[str] = []  # by the policy, where the page asks for it all the same
    page.on("console", lambda message: refused.append(message.text) if "Content Security" in message.text else None)
    prefect, login = (address.replace("127.0.0.1", name) for address in (up.addresses.prefect, up.login))
    for path in ("v2/deployments", "v2/runs", "v2/flows", "v2/automations", "v2/settings", "dashboard", "deployments"):
        text = "tiny" if path.endswith("deployments") else ""
        until(partial(shows, page, f"{prefect}/{path}", login, text))
    hosts = {urlsplit(url).hostname for url in asked if url.startswith(("http", "ws"))}
    assert hosts <= {"127.0.0.1", "localhost"}, hosts
    ours = [said for said in refused if f":{up.ports[0]}" in said.partition("violates")[0]]
    assert ours == []


def test_the_link_that_logs_a_browser_in_to_mlflow_opens_a_page_with_its_experiments(up: Up, chromium: Browser) -> None:
    with chromium.new_context() as context:
        page = context.new_page()
        page.goto(up.addresses.mlflow.replace("://", f"://tunewright:{quote(up.password, safe='')}@"))
        expect(page.get_by_text("Create your first experiment").or_(page.get_by_text("Default")).first).to_be_visible()
        assert page.evaluate("new URL(document.baseURI).username") == ""
        asked = "fetch('/ajax-api/2.0/mlflow/experiments/search?max_results=1').then(answer => answer.status)"
        assert page.evaluate(asked) == 200


def test_the_pages_of_mlflow_reach_no_other_server_and_work(up: Up, chromium: Browser) -> None:
    credentials: Any = {"username": "tunewright", "password": up.password}
    with chromium.new_context(http_credentials=credentials) as context:
        page, asked, refused = context.new_page(), list[str](), list[str]()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: refused.append(message.text) if "Content Security" in message.text else None)
        for path, title in (
            ("", "Home"),
            ("#/experiments", "Experiments"),
            ("#/models", "Models"),
            ("#/settings", "Sett"),
        ):
            page.goto(f"{up.addresses.mlflow}/{path}")
            expect(page).to_have_title(re.compile(f"^{title}"))
            page.wait_for_timeout(1_000)  # it asks for more once it stands
        hosts = {urlsplit(url).netloc for url in asked if url.startswith(("http", "ws"))}
        assert hosts == {urlsplit(up.addresses.mlflow).netloc}
        assert refused == []
        assert page.evaluate(LOADED, EDITOR) == "refused"
        assert page.evaluate(LOADED, f"{up.addresses.mlflow}/static-files/manifest.json") != "refused"
