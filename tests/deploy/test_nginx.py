"""deploy/nginx.conf, run by a real nginx with TLS."""

import re
import shutil
import ssl
import subprocess
import time

import httpx
import pytest
from deploy_kit import NGINX, PORT
from server_kit import free_port

from penult.server import EndpointConfig, Limits, ServerConfig


def test_nginx_has_the_limits_of_the_server():
    """The body size and the idle time of nginx fit the server's defaults."""
    assert f"client_max_body_size {Limits().max_body_bytes // 2**20}m;" in NGINX
    config = ServerConfig(endpoints=(EndpointConfig(model="m"),))
    assert int(re.search(r"keepalive_timeout (\d+)s", NGINX)[1]) < config.keep_alive


def test_nginx_forwards_requests_over_tls(running, tmp_path):
    """A real nginx accepts the file, and forwards an embedding request over TLS; a body over the limit is 413."""
    if shutil.which("nginx") is None or shutil.which("openssl") is None:
        pytest.skip("needs nginx and openssl")
    ports = [free_port(), free_port()]
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-keyout", key, "-out", certificate]
    subprocess.run([*request, *subject], check=True, capture_output=True, timeout=60)
    site = re.sub(r"listen \[::\]:.*\n", "", NGINX)
    changes = {"listen 443": f"listen 127.0.0.1:{ports[0]}", "listen 80": f"listen 127.0.0.1:{ports[1]}",
               f"127.0.0.1:{PORT};": f"127.0.0.1:{running.port};", "embeddings.example.com;": "localhost;",
               "/etc/ssl/certs/embeddings.example.com.pem": str(certificate),
               "/etc/ssl/private/embeddings.example.com.key": str(key)}  # fmt: skip
    for old, new in changes.items():
        assert old in site
        site = site.replace(old, new)
    paths = "".join(f"{kind}_temp_path {tmp_path}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    main = f"daemon off;\npid {tmp_path}/pid;\nerror_log stderr;\nevents {{}}\nhttp {{\naccess_log off;\n{paths}{site}\n}}\n"
    (tmp_path / "nginx.conf").write_text(main)
    command = ["nginx", "-e", "stderr", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]
    checked = subprocess.run([*command, "-t"], capture_output=True, text=True, timeout=30)
    assert checked.returncode == 0, checked.stderr
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        context = ssl.create_default_context(cafile=str(certificate))
        with httpx.Client(verify=context, base_url=f"https://localhost:{ports[0]}", timeout=30) as client:
            answer = ask(client)
            assert answer.status_code == 200
            assert len(answer.json()["data"][0]["embedding"]) == 32
            assert client.get("/metrics").status_code == 200
            assert client.post("/v1/embeddings", content=bytes(Limits().max_body_bytes + 1)).status_code == 413
        redirect = httpx.get(f"http://127.0.0.1:{ports[1]}/docs")
        assert (redirect.status_code, redirect.headers["location"]) == (301, "https://127.0.0.1/docs")
    finally:
        process.terminate()
        process.wait(20)


def ask(client: httpx.Client) -> httpx.Response:
    """Send a request, once nginx listens."""
    for _ in range(100):
        try:
            return client.post("/v1/embeddings", json={"input": "the cat"})
        except httpx.ConnectError:
            time.sleep(0.1)
    raise AssertionError("nginx does not listen")
