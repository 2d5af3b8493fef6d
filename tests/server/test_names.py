"""Names of models: shown, accepted and refused names."""

import pytest
from models import tiny_model
from server_kit import serving

from penult import RemoteEmbedder
from penult.deepsparse.arguments import TASK
from penult.deepsparse.config_file import DeepSparseEndpoint
from penult.server import ConfigError, EndpointConfig, ServerConfig
from penult.server.config import public_name

ROUTES = [
    ("POST", "/v1/embeddings", {"input": "the cat"}),
    ("POST", "/embed", {"inputs": "the cat"}),
    ("POST", "/predict", {"inputs": "the cat"}),
    ("GET", "/v1/models", None),
    ("GET", "/info", None),
    ("GET", "/openapi.json", None),
    ("GET", "/metrics", None),
]


@pytest.mark.parametrize("kind", [DeepSparseEndpoint, EndpointConfig])
def test_responses_contain_no_path_of_the_server(tiny, kind):
    """No response or error of the client routes contains the model's path."""
    with serving(kind(model=str(tiny))) as running:
        for method, path, body in ROUTES:
            assert str(tiny.parent) not in running.client.request(method, path, json=body).text, path
        assert str(tiny.parent) not in running.post("/v1/embeddings", {"input": 5}).text


@pytest.mark.parametrize("kind", [ServerConfig, None])
def test_a_single_model_accepts_any_name(tiny, kind):
    """A server of one model accepts any name, and `model` of the response has the real one."""
    options = {} if kind is None else {"kind": kind}
    with serving(EndpointConfig(model=str(tiny), served_model_name="minilm"), **options) as running:
        for name in ("minilm", str(tiny), "text-embedding-3-small", None):
            answer = running.post("/v1/embeddings", {"input": "the cat", "model": name})
            assert (answer.status_code, answer.json()["model"]) == (200, "minilm")
            assert running.post("/embed", {"inputs": "the cat", "model": name}).status_code == 200
        assert [card["id"] for card in running.get("/v1/models").json()["data"]] == ["minilm"]
        assert running.get("/v1/models/minilm").json()["id"] == "minilm"
        assert running.get("/info").json()["served_model_name"] == "minilm"
        assert running.get("/info").json()["model_id"] == "minilm"


def test_strict_names(tiny):
    """With strict names, another name gets 404 in the format of each protocol; a request without a name is answered."""
    with serving(
        EndpointConfig(model=str(tiny), served_model_name="minilm", aliases=("ada",)), strict_model_name=True
    ) as running:
        for name in ("minilm", str(tiny), tiny.name, "ada", None):
            assert running.post("/v1/embeddings", {"input": "the cat", "model": name}).status_code == 200, name
        answer = running.post("/v1/embeddings", {"input": "the cat", "model": "gpt"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
        assert "Set `model` to one of: minilm." in answer.json()["error"]["message"]
        assert running.get("/v1/models/gpt").status_code == 404
        assert running.get("/v1/models/minilm").status_code == 200
        for path in ("/embed", "/embed_all", "/tokenize"):
            answer = running.post(path, {"inputs": "the cat", "model": "gpt"})
            assert (answer.status_code, answer.json()["error_type"]) == (404, "Validation"), path
        assert running.get("/info?model=gpt").status_code == 404


def test_several_models(tiny, models_folder):
    """With several models, each is found by id, path, served name and alias; an unknown or missing name gets 404."""
    other = models_folder("max", pooling="max", normalize=False)
    endpoints = (
        EndpointConfig(model=str(tiny), served_model_name="first", name="one", aliases=("a",)),
        EndpointConfig(model=str(other)),
    )
    with serving(*endpoints) as running:
        assert [card["id"] for card in running.get("/v1/models").json()["data"]] == ["first", "max"]
        for name, expected in (("first", "first"), ("one", "first"), ("a", "first"), (str(tiny), "first"), ("tiny", "first"),
                               ("max", "max"), (str(other), "max")):  # fmt: skip
            answer = running.post("/v1/embeddings", {"input": "the cat", "model": name})
            assert (answer.status_code, answer.json()["model"]) == (200, expected)
        for name in ("gpt", None):
            answer = running.post("/v1/embeddings", {"input": "the cat", "model": name})
            assert (answer.status_code, "to one of: first, max" in answer.text) == (404, True)


def test_two_folders_of_one_name(tmp_path):
    """Two models in folders of the same name are both served; the second is found by its path or by its own name."""
    folders = [tiny_model(tmp_path / part / "same") for part in ("a", "b")]
    with serving(*(EndpointConfig(model=str(folder)) for folder in folders), kind=ServerConfig) as running:
        assert [card["id"] for card in running.get("/v1/models").json()["data"]] == ["same", str(folders[1])]
    with (
        pytest.raises(ConfigError, match="served_model_name"),
        serving(*(EndpointConfig(model=str(folders[0]), layer=layer) for layer in (-1, 0, 1)), kind=ServerConfig),
    ):
        pass
    with pytest.raises(ValueError, match=r"it must be unique"):
        ServerConfig(endpoints=tuple(EndpointConfig(model=str(folder), served_model_name="m") for folder in folders))


def test_deepsparses_paths_accept_the_served_name(tiny):
    """A single model has paths under /v2/models for DeepSparse's names and for its name on the other routes."""
    with serving(DeepSparseEndpoint(model=str(tiny), task=TASK, name=TASK, served_model_name="minilm")) as running:
        for name in (TASK, f"{TASK}-0", "minilm"):
            assert running.post(f"/v2/models/{name}/infer", {"inputs": "the cat"}).status_code == 200, name
            assert running.get(f"/v2/models/{name}/ready").status_code == 200
        assert running.get("/v1/models").json()["data"][0]["id"] == "minilm"


@pytest.mark.parametrize("route", ["/embeddings", "tokenize", "/decode", "/similarity", "/models"])
def test_an_endpoints_own_route_overrides(tiny, route):
    """A route in a DeepSparse file may override paths that are newer than DeepSparse, but not the main paths of other protocols."""
    mean = {"extraction_strategy": "reduce_mean"}
    with serving(DeepSparseEndpoint(model=str(tiny), route=route, kwargs=mean)) as running:
        answer = running.post("/" + route.strip("/"), {"inputs": "the cat"})
        assert (answer.status_code, len(answer.json()["embeddings"][0])) == (200, 32)
        assert running.post("/v1/embeddings", {"input": "the cat"}).status_code == 200
    with (
        pytest.raises(ConfigError, match=r"must be unique|already in use"),
        serving(*(DeepSparseEndpoint(model=str(tiny), route=path) for path in (route, "/embed"))),
    ):
        pass


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("sentence-transformers/all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"),
        ("org/name@v1", "org/name@v1"),
        ("package:some/part", "package:some/part"),
        ("zoo:some-stub", "zoo:some-stub"),
        ("/srv/models/minilm", "minilm"),
        ("/srv/models/minilm/", "minilm"),
        ("/srv/models/minilm/onnx/model.onnx", "minilm"),
        ("/srv/models/minilm/model_int8.onnx", "minilm"),
        ("/srv/models/minilm.onnx", "minilm"),
        ("/model", "model"),
        ("/", "/"),
        ("./minilm", "minilm"),
        ("~/models/minilm", "minilm"),
        ("/root/.cache/huggingface/hub/models--org--some-name/snapshots/0123abcd", "org/some-name"),
    ],
)
def test_public_name(model, name):
    """The public name of a path is its folder's name; Hub ids and stubs are unchanged."""
    assert public_name(model) == name


def test_a_client_without_a_model_name(tiny, models_folder):
    """`RemoteEmbedder` uses the only model; with several models it requires `model`."""
    endpoints = [
        EndpointConfig(model=str(tiny), served_model_name="first", name="one"),
        EndpointConfig(model=str(models_folder("max", pooling="max", normalize=False)), served_model_name="second", name="two"),
    ]
    with serving(*endpoints) as running:
        with (
            RemoteEmbedder(running.url) as remote,
            pytest.raises(ValueError, match=r"several models. Pass model=.*first, second"),
        ):
            remote.embed(["the cat"])
        with RemoteEmbedder(running.url, model="second") as remote:
            assert remote.embed(["the cat"]).shape == (1, 32)
