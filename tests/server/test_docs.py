"""The pages /docs and /redoc work without the internet, in a real browser."""

import json
import re
import shutil
import subprocess
import time

import httpx
import pytest
from server_kit import free_port


def test_pages_load_nothing_from_other_hosts(client):
    """The pages do not load anything from another host."""
    for page in ("/docs", "/redoc"):
        text = client.get(page).text
        assert not re.findall(r"https?://", text)
        loaded = re.findall(r'(?:src|href)="([^"]+)"', text)
        assert len(loaded) >= 2
        for path in loaded:
            assert client.get(path).status_code == 200, path


def test_front_redirects_to_docs(client):
    """GET / redirects to /docs, with DeepSparse's status."""
    answer = client.get("/")
    assert (answer.status_code, answer.headers["location"]) == (307, "/docs")


class Browser:
    """Headless Chromium, controlled through the WebDriver protocol."""

    def __init__(self, driver: str, chromium: str) -> None:
        port = free_port()
        self._driver = subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        # Other hosts do not resolve: the page must not need the internet.
        arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--host-resolver-rules=MAP * 0.0.0.0, EXCLUDE 127.0.0.1",
        ]
        capabilities = {"browserName": "chrome", "goog:chromeOptions": {"args": arguments, "binary": chromium}}
        for _ in range(100):
            try:
                made = self._http.post("/session", json={"capabilities": {"alwaysMatch": capabilities}})
                break
            except httpx.ConnectError:
                time.sleep(0.1)
        self._session = "/session/" + made.json()["value"]["sessionId"]

    def open(self, url: str) -> None:
        self._http.post(f"{self._session}/url", json={"url": url})

    def run(self, script: str):
        return self._http.post(f"{self._session}/execute/sync", json={"script": script, "args": []}).json()["value"]

    def until(self, script: str):
        """Run a script until it returns a value."""
        for _ in range(100):
            if found := self.run(script):
                return found
            time.sleep(0.1)
        raise AssertionError(f"never true: {script}")

    def close(self) -> None:
        self._http.delete(self._session)
        self._http.close()
        self._driver.terminate()
        self._driver.wait(20)


@pytest.fixture(scope="module")
def browser():
    driver, chromium = shutil.which("chromedriver"), shutil.which("chromium") or shutil.which("google-chrome")
    if driver is None or chromium is None:
        pytest.skip("needs chromium and chromedriver")
    made = Browser(driver, chromium)
    yield made
    made.close()


def test_docs_try_it_out(browser, served):
    """In a browser without the internet, /docs renders, and "Try it out" on /predict shows vectors."""
    browser.open(f"{served.url}/docs")
    block = "[...document.querySelectorAll('.opblock-post')].find(b => b.querySelector('.opblock-summary-path').dataset.path == '/predict')"
    browser.until(f"return !!{block}")
    browser.run(f"{block}.querySelector('.opblock-summary-control').click()")
    browser.until(f"const b = {block}.querySelector('.try-out__btn'); if (b) b.click(); return !!b")
    browser.until(f"const b = {block}.querySelector('.execute'); if (b) b.click(); return !!b")
    text = browser.until(
        f"const c = {block}.querySelector('.live-responses-table .response-col_description code'); return c && c.textContent"
    )
    embeddings = json.loads(text)["embeddings"]
    assert [len(row) for row in embeddings] == [32]


def test_redoc_renders(browser, served):
    """In a browser without the internet, /redoc renders the routes."""
    browser.open(f"{served.url}/redoc")
    assert "/v1/embeddings" in browser.until("const t = document.body.innerText; return t.includes('/v1/embeddings') && t")
