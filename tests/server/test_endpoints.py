"""Adding and removing endpoints: models are freed, and a model that never loads blocks no other request."""

import asyncio
import subprocess
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from server_kit import Process, serving

from penult.deepsparse import load_probe
from penult.deepsparse.arguments import TASK
from penult.server import EndpointConfig, Limits
from penult.server import models as models_module
from penult.server.errors import Refusal
from penult.server.metrics import Metrics
from penult.server.models import Models


@pytest.fixture
def running(tiny):
    with serving(EndpointConfig(model=str(tiny)), allow_endpoints=True) as server:
        server.post("/predict", {"inputs": "a"})
        yield server


def endpoint(tiny, name: str, **more) -> dict:
    return {"task": TASK, "model": str(tiny), "name": name, **more}


def delete(running, body):
    return running.client.request("DELETE", "/endpoints", json=body)


def models(running) -> dict:
    return running.app.state.service.models._models


def test_deleting_frees_the_model(running, tiny, monkeypatch):
    """Removing an endpoint ends the threads, sessions and queues of its models, except of models that others use."""
    returned: list[int] = []
    monkeypatch.setattr(
        models_module, "_return_freed_memory", lambda: returned.append(sum(ref() is not None for ref in opened))
    )
    kept, threads = {*models(running)}, threading.active_count()
    for cycle in range(3):
        body = endpoint(tiny, f"more{cycle}", kwargs={"sequence_length": 16 + cycle, "extraction_strategy": "reduce_max"})
        assert running.post("/endpoints", body).status_code == 200
        assert running.post(f"/v2/models/more{cycle}/infer", {"inputs": "a"}).status_code == 200
        assert running.post("/embed", {"inputs": "a", "model": f"more{cycle}", "normalize": False}).status_code == 200
        new = {*models(running)} - kept
        assert len(new) >= 2  # the pipeline and the embedder
        opened = [weakref.ref(models(running)[key]) for key in new]
        assert delete(running, body).status_code == 200
        assert {*models(running)} == kept
        assert returned.pop() == 0  # the models are freed before the memory is returned to the operating system
    assert threading.active_count() <= threads + 1  # possibly a tokenizer thread
    assert running.post("/predict", {"inputs": "a"}).status_code == 200
    assert running.get("/health").status_code == 200


def test_models_that_others_use_stay_open(running, tiny):
    """Endpoints share models; a model is freed with the last endpoint that uses it or its session."""
    bodies = [endpoint(tiny, name, prompts={"query": name}) for name in ("one", "two")]
    for body in bodies:  # one pipeline, which shares the session of the first embedder; two embedders
        assert running.post("/endpoints", body).status_code == 200
        assert running.post("/embed", {"inputs": "a", "model": body["name"], "input_type": "query"}).status_code == 200
    assert delete(running, bodies[0]).status_code == 200
    assert running.post("/v2/models/two/infer", {"inputs": "a"}).status_code == 200
    assert running.post("/embed", {"inputs": "a", "model": "two"}).status_code == 200
    assert running.post("/v2/models/one/infer", {"inputs": "a"}).status_code == 404


def test_an_overridden_route_is_restored(running, tiny):
    """An endpoint's route overrides OpenAI's until the endpoint is removed; a refused endpoint overrides nothing."""
    body, openai = endpoint(tiny, "old", route="/embeddings"), {"input": "a"}
    assert running.post("/endpoints", {**body, "model": "/nowhere"}).status_code == 422
    assert running.post("/embeddings", openai).status_code == 200
    body["kwargs"] = {"sequence_length": 16}
    for _ in range(2):
        assert running.post("/endpoints", body).status_code == 200
        assert running.post("/embeddings", {"inputs": "a"}).status_code == 200
        assert running.post("/endpoints", {**body, "name": "other"}).status_code == 422
        assert delete(running, body).status_code == 200
        assert running.post("/embeddings", openai).status_code == 200


def test_requests_in_flight_are_finished(running, tiny):
    """Running requests of a removed endpoint are answered; later ones get an error that the model was removed."""
    body = endpoint(tiny, "more", kwargs={"sequence_length": 16, "extraction_strategy": "reduce_max"})
    assert running.post("/endpoints", body).status_code == 200
    (queued,) = [model for key, model in models(running).items() if "reduce_max" in key]
    run, entered, free = queued.pipeline.run, threading.Event(), threading.Event()

    def slowly(tokenized):
        entered.set()
        assert free.wait(20)
        return run(tokenized)

    queued.pipeline.run = slowly
    with ThreadPoolExecutor(2) as pool:
        answer = pool.submit(running.post, "/v2/models/more/infer", {"inputs": "a"})
        assert entered.wait(20)
        deleting = pool.submit(delete, running, body)
        while any(getattr(route, "path", "").startswith("/v2/models/more") for route in running.app.routes):
            time.sleep(0.01)
        assert running.post("/v2/models/more/infer", {"inputs": "a"}).status_code == 404
        assert not deleting.done()
        free.set()
        assert answer.result().status_code == 200
        assert deleting.result().status_code == 200

    async def late_request():
        tokenized = await queued.tokenize(["a"])
        await queued.items(tokenized)

    with pytest.raises(Refusal, match="removed") as refusal:
        asyncio.run(late_request())
    assert refusal.value.reason == "missing"


def test_a_name_is_used_once(running, tiny):
    """Of two simultaneous requests with the same name, one is refused without side effects."""
    bodies = [endpoint(tiny, "more", kwargs={"sequence_length": length}) for length in (16, 17)]
    with ThreadPoolExecutor(2) as pool:
        answers = [*pool.map(lambda body: running.post("/endpoints", body).status_code, bodies)]
    assert sorted(answers) == [200, 422]
    assert len(running.app.state.service.endpoints) == 2


HANGS = ("-c", "import sys, time; sys.stdin.readline(); time.sleep(100)")


def probe(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(load_probe, "_COMMAND", (load_probe.sys.executable, *arguments))


def test_a_model_that_never_loads(tiny, monkeypatch):
    """Loading ends at the time limit and blocks no other request or endpoint meanwhile; a crash is reported."""
    limits = Limits(max_load_seconds=2)
    with (
        serving(EndpointConfig(model=str(tiny)), limits=limits, allow_endpoints=True) as running,
        ThreadPoolExecutor(1) as pool,
    ):
        own = load_probe._COMMAND
        probe(monkeypatch, *HANGS)
        hanging = pool.submit(running.post, "/endpoints", endpoint(tiny, "hangs"))
        while not load_probe._RUNNING:
            time.sleep(0.01)
        probe(monkeypatch, *own[1:])
        assert running.post("/predict", {"inputs": "a"}).status_code == 200
        body = endpoint(tiny, "good", kwargs={"extraction_strategy": "reduce_mean"})
        added = running.post("/endpoints", body)
        assert added.status_code == 200 or "within 2 s" in added.text
        answer = hanging.result()
        assert answer.status_code == 422
        assert "did not load within 2 s" in answer.text
        for code, words in (
            ("import os; os.abort()", "ended a process with status -6"),
            ("print('why not', end=''); exit(1)", "why not"),
        ):
            probe(monkeypatch, "-c", code)
            answer = running.post("/endpoints", endpoint(tiny, "broken"))
            assert (answer.status_code, words in answer.text) == (422, True)
        assert not load_probe._RUNNING


def test_concurrent_probes_are_limited(tiny, monkeypatch):
    """More than four simultaneous probes get 429; a client that disconnects ends its own probe."""
    probe(monkeypatch, *HANGS)
    with serving(EndpointConfig(model=str(tiny)), allow_endpoints=True) as running:
        clients = [httpx.Client(base_url=running.url, timeout=1.5) for _ in range(4)]
        with ThreadPoolExecutor(4) as pool:
            waiting = [pool.submit(one.post, "/endpoints", json=endpoint(tiny, f"n{i}")) for i, one in enumerate(clients)]
            while len(load_probe._RUNNING) < 4:
                time.sleep(0.01)
            answer = running.post("/endpoints", endpoint(tiny, "fifth"))
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "5")
            for one in waiting:
                with pytest.raises(httpx.ReadTimeout):
                    one.result()
        for client in clients:
            client.close()
        until = time.monotonic() + 10
        while load_probe._RUNNING:
            assert time.monotonic() < until
            time.sleep(0.05)


def test_sigterm_ends_probes(tiny):
    """On SIGTERM, the server ends running probes and exits."""
    before = f"import sys, penult.deepsparse.load_probe as probe\nprobe._COMMAND = (sys.executable, *{HANGS!r})"
    server = Process("--model_path", str(tiny), "--allow-endpoints", before=before)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(httpx.post, f"{server.url}/endpoints", json=endpoint(tiny, "hangs"), timeout=60)
        time.sleep(1)
        started = time.monotonic()
        assert server.end() in (0, -15, 143)
        assert time.monotonic() - started < 5
        assert "the server is shutting down" in answer.result().text


def test_sigterm_does_not_wait_for_a_model(tiny, tmp_path):
    """On SIGTERM, the server does not wait for a model that a request loads."""
    before = "import time, penult.server.models as models\nmodels.Models._open = lambda *_: time.sleep(100)"
    file = tmp_path / "config.yaml"
    file.write_text(f"endpoints:\n  - {{task: {TASK}, model: '{tiny}', kwargs: {{extraction_strategy: reduce_mean}}}}\n")
    server = Process("--config_file", str(file), before=before)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(httpx.get, f"{server.url}/info", timeout=60)
        time.sleep(1)
        started = time.monotonic()
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert server.end() in (0, -15, 143)
        assert time.monotonic() - started < 5
        assert (answer.result().status_code, "the server is shutting down" in answer.result().text) == (424, True)


def test_a_probe_ends_with_its_parent():
    """A probe ends when its parent has ended."""
    child = subprocess.Popen(load_probe._COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdin.write(b'{"endpoint": {"task": "%s", "model": "/dev/stdin"}, "threads": 1}' % TASK.encode())
    child.stdin.close()
    assert child.wait(20) != 0
    child.stdout.close()


async def test_models_load_in_parallel():
    """Models load in parallel: requests for a slow one wait up to the limit, others do not wait."""
    opened_models, free, config = (
        Models(Limits(max_load_seconds=1), Metrics(), 1),
        threading.Event(),
        EndpointConfig(model="slow"),
    )
    calls = []

    class Model:
        session_of = None

        def close(self):
            pass

    def slowly():
        calls.append(1)
        assert free.wait(20)
        return Model()

    first, second = (asyncio.ensure_future(opened_models.opened_for(config, ("slow",), slowly)) for _ in range(2))
    await asyncio.sleep(0.05)
    assert isinstance(await opened_models.opened_for(config, ("quick",), Model), Model)
    assert not first.done()
    for waiting in (first, second):
        with pytest.raises(Refusal, match="did not load within 1 s"):
            await waiting
    free.set()
    model = await opened_models.opened_for(config, ("slow",), slowly)
    assert (len(calls), await opened_models.opened_for(config, ("slow",), slowly)) == (1, model)


async def test_a_failed_model_is_loaded_again():
    """An error reaches all requests that wait for a model; the next request loads it again."""
    opened_models, config, outcomes = (
        Models(Limits(), Metrics(), 1),
        EndpointConfig(model="m"),
        iter([ValueError("once"), None]),
    )

    def opens():
        time.sleep(0.05)
        if (error := next(outcomes)) is not None:
            raise error
        return "a model"

    waiting = [asyncio.ensure_future(opened_models.opened_for(config, ("m",), opens)) for _ in range(3)]
    for one in waiting:
        with pytest.raises(Refusal, match="once"):
            await one
    assert await opened_models.opened_for(config, ("m",), opens) == "a model"


async def test_shutdown_does_not_wait_for_models():
    """Requests that wait for a model are answered when the server shuts down."""
    opened_models, free = Models(Limits(), Metrics(), 1), threading.Event()
    waiting = asyncio.ensure_future(opened_models.opened_for(EndpointConfig(model="m"), ("m",), lambda: free.wait(20)))
    await asyncio.sleep(0.05)
    opened_models.stop_opening()
    with pytest.raises(Refusal, match="the server is shutting down"):
        await asyncio.wait_for(waiting, 5)
    free.set()
