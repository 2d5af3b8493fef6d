"""Names of models: what clients see, what resolves, and what is refused."""

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
def test_no_answer_shows_the_servers_folders(tiny, kind):
    """Neither an answer nor an error of the routes for clients has the path of the model."""
    with serving(kind(model=str(tiny))) as running:
        for method, path, body in ROUTES:
            assert str(tiny.parent) not in running.client.request(method, path, json=body).text, path
        assert str(tiny.parent) not in running.post("/v1/embeddings", {"input": 5}).text


@pytest.mark.parametrize("kind", [ServerConfig, None])
def test_one_model_answers_to_any_name(tiny, kind):
    """With one model any name is answered, and `model` of the answer says which one did."""
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
    """With strict names another name is 404, in the words of each contract; no name at all still answers."""
    with serving(
        EndpointConfig(model=str(tiny), served_model_name="minilm", aliases=("ada",)), strict_model_name=True
    ) as running:
        for name in ("minilm", str(tiny), tiny.name, "ada", None):
            assert running.post("/v1/embeddings", {"input": "the cat", "model": name}).status_code == 200, name
        answer = running.post("/v1/embeddings", {"input": "the cat", "model": "gpt"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
        assert "`model` must be one of minilm." in answer.json()["error"]["message"]
        assert running.get("/v1/models/gpt").status_code == 404
        assert running.get("/v1/models/minilm").status_code == 200
        for path in ("/embed", "/embed_all", "/tokenize"):
            answer = running.post(path, {"inputs": "the cat", "model": "gpt"})
            assert (answer.status_code, answer.json()["error_type"]) == (404, "Validation"), path
        assert running.get("/info?model=gpt").status_code == 404


def test_several_models(tiny, models_folder):
    """Of several models, id, path, served name and alias each lead to one; an unknown name, and none, is 404."""
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
            assert (answer.status_code, "must be one of first, max" in answer.text) == (404, True)


def test_two_folders_of_one_name(tmp_path):
    """Two models in folders of one name are both served; the second needs its path, or a name of its own."""
    folders = [tiny_model(tmp_path / part / "same") for part in ("a", "b")]
    with serving(*(EndpointConfig(model=str(folder)) for folder in folders), kind=ServerConfig) as running:
        assert [card["id"] for card in running.get("/v1/models").json()["data"]] == ["same", str(folders[1])]
    with (
        pytest.raises(ConfigError, match="served_model_name"),
        serving(*(EndpointConfig(model=str(folders[0]), layer=layer) for layer in (-1, 0, 1)), kind=ServerConfig),
    ):
        pass
    with pytest.raises(ValueError, match=r"each endpoint needs its own"):
        ServerConfig(endpoints=tuple(EndpointConfig(model=str(folder), served_model_name="m") for folder in folders))


def test_deepsparses_paths_take_the_served_name(tiny):
    """A single model is reached under /v2/models by DeepSparse's names and by the one that the other routes show."""
    with serving(DeepSparseEndpoint(model=str(tiny), task=TASK, name=TASK, served_model_name="minilm")) as running:
        for name in (TASK, f"{TASK}-0", "minilm"):
            assert running.post(f"/v2/models/{name}/infer", {"inputs": "the cat"}).status_code == 200, name
            assert running.get(f"/v2/models/{name}/ready").status_code == 200
        assert running.get("/v1/models").json()["data"][0]["id"] == "minilm"


@pytest.mark.parametrize("route", ["/embeddings", "tokenize", "/decode", "/similarity", "/models"])
def test_an_endpoints_own_route_overrides(tiny, route):
    """A configuration file of DeepSparse may name any of the further paths; the contracts' own stay refused."""
    mean = {"extraction_strategy": "reduce_mean"}
    with serving(DeepSparseEndpoint(model=str(tiny), route=route, kwargs=mean)) as running:
        answer = running.post("/" + route.strip("/"), {"inputs": "the cat"})
        assert (answer.status_code, len(answer.json()["embeddings"][0])) == (200, 32)
        assert running.post("/v1/embeddings", {"input": "the cat"}).status_code == 200
    with (
        pytest.raises(ConfigError, match=r"each endpoint needs its own|taken already"),
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
    """A path's last part that says something; Hub ids and stubs as they are."""
    assert public_name(model) == name


def test_a_client_that_names_no_model(tiny, models_folder):
    """`RemoteEmbedder` takes the only model; of several it takes none without being told which."""
    endpoints = [
        EndpointConfig(model=str(tiny), served_model_name="first", name="one"),
        EndpointConfig(model=str(models_folder("max", pooling="max", normalize=False)), served_model_name="second", name="two"),
    ]
    with serving(*endpoints) as running:
        with RemoteEmbedder(running.url) as remote, pytest.raises(ValueError, match=r"several models; name one.*first, second"):
            remote.embed(["the cat"])
        with RemoteEmbedder(running.url, model="second") as remote:
            assert remote.embed(["the cat"]).shape == (1, 32)
