"""The modules of a folder: their kinds, their order, the routes of a router, and models of other kinds."""

import re

import pytest
from folder_kit import PACKAGE, list_modules, static_model
from hypothesis import given, settings
from hypothesis import strategies as st
from models import tiny_model, write_json

from penult import Embedder
from penult.core.config import modules
from penult.core.config.modules import Module, read_modules
from penult.core.recipe import Overrides, read


def router(folder, structure, *, types=None, name="router_config.json", **parameters):
    """Write the configuration of a router, by default with transformers as its modules."""
    types = types or {module: f"{PACKAGE}Transformer" for listed in structure.values() for module in listed}
    write_json(folder / name, {"types": types, "structure": structure, "parameters": parameters})


def folders(actual):
    """Return the module folders of each role."""
    return {role: [module.folder for module in listed] for role, listed in actual.items()}


# --- modules.json


def test_modules_are_read_in_their_order(tmp_path):
    """Modules keep the order of the file, the same for both roles; the last part of the class name is their kind."""
    list_modules(tmp_path, ("Transformer", ""), ("Normalize", "3_N"), ("Pooling", "1_P"))
    listed = read_modules(tmp_path)
    assert listed["query"] == listed["document"]
    assert [(module.kind, module.folder) for module in listed["document"]] == [
        ("Transformer", ""),
        ("Normalize", "3_N"),
        ("Pooling", "1_P"),
    ]
    assert listed["document"][0].path == f"{PACKAGE}Transformer"


@pytest.mark.parametrize(
    "path",
    [
        "sentence_transformers.models.Pooling",
        "sentence_transformers.models.pooling.Pooling",
        "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
        "sentence_transformers.base.modules.Pooling",
        "Pooling",
    ],
)
def test_older_and_newer_class_paths(tmp_path, path):
    """Every path at which a version of sentence-transformers has a class means that class."""
    write_json(tmp_path / "modules.json", [{"type": f"{PACKAGE}Transformer", "path": ""}, {"type": path, "path": "1_P"}])
    assert read_modules(tmp_path)["document"][1] == Module("Pooling", "1_P", path)


def test_a_transformer_of_the_models_own_code(tmp_path):
    """A Transformer class from the model's own Python file is read as a Transformer; no other module may be custom."""
    list_modules(tmp_path, ("custom_st.Transformer", ""))
    assert read_modules(tmp_path)["document"][0].is_input
    list_modules(tmp_path, ("Transformer", ""), ("custom_st.Pooling", "1_P"))
    with pytest.raises(ValueError, match=re.escape("module 'Pooling' (custom_st.Pooling); penult supports Transformer")):
        read_modules(tmp_path)


@pytest.mark.parametrize("kind", ["CNN", "LSTM", "BoW", "WordEmbeddings", "WordWeights", "WeightedLayerPooling", "", "Poolin"])
def test_an_unsupported_module(tmp_path, kind):
    """The error names the module and the supported ones, and does not suggest a pooling."""
    write_json(
        tmp_path / "modules.json", [{"type": f"{PACKAGE}Transformer", "path": ""}, {"type": PACKAGE + kind, "path": "1_X"}]
    )
    with pytest.raises(
        ValueError, match=f"module {kind!r}.*penult supports Transformer, StaticEmbedding.*would give other"
    ) as caught:
        read_modules(tmp_path)
    assert "pooling=" not in str(caught.value)


@pytest.mark.parametrize("place", ["../other", "/etc", "a/../../b", "x\0y", "d" * 256])
def test_a_folder_outside_the_model(tmp_path, place):
    """A module's folder must be inside the model's folder."""
    list_modules(tmp_path, ("Transformer", place))
    with pytest.raises(ValueError, match=r"modules\.json names the folder .* outside the model's folder"):
        read_modules(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, r"modules\.json contains a dict; it must be a list"),
        ("x", r"modules\.json contains a str"),
        ([1], r"modules\.json lists a module whose type and path"),
        ([{"path": ""}], r"modules\.json lists a module whose type"),
        ([{"type": 1, "path": ""}], r"modules\.json lists a module whose type"),
        ([{"type": "Transformer", "path": None}], r"modules\.json lists a module whose type and path"),
        ([{"type": "Transformer", "path": ["a"]}], r"modules\.json lists a module whose type and path"),
    ],
)
def test_a_malformed_list(tmp_path, content, message):
    """Anything but a list of modules with a type and a path is an error that names the file."""
    write_json(tmp_path / "modules.json", content)
    with pytest.raises(ValueError, match=message):
        read_modules(tmp_path)


def test_no_list_of_modules(tmp_path):
    """A folder without modules.json has no modules; a dangling link is an error."""
    assert read_modules(tmp_path) == {"document": (), "query": ()}
    (tmp_path / "modules.json").symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"modules\.json is a link to a file that does not exist"):
        read_modules(tmp_path)


def test_a_pointer_in_place_of_the_list(tmp_path):
    """A Git LFS pointer does not count as a folder without modules."""
    (tmp_path / "modules.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 90\n")
    with pytest.raises(ValueError, match=r"modules\.json is a Git LFS pointer"):
        read_modules(tmp_path)


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ([("Pooling", "1_P")], "lists Pooling; penult supports one module that takes text, as the first"),
        (
            [("Transformer", ""), ("Transformer", "a")],
            "lists Transformer, Transformer; penult supports one module that takes text",
        ),
        ([("Normalize", "n"), ("Transformer", "")], "lists Normalize, Transformer;"),
    ],
)
def test_only_the_first_module_takes_text(tmp_path, listed, message):
    """One module takes text, and it is the first."""
    list_modules(tmp_path, *listed)
    with pytest.raises(ValueError, match=message):
        read(tmp_path, Overrides())


# --- models of other kinds


@pytest.mark.parametrize(
    ("model_type", "message"),
    [
        ("CrossEncoder", "a reranker"),
        ("SparseEncoder", "a sparse encoder"),
        ("MultiVectorEncoder", "a late-interaction model"),
        ("PairScorer", "a PairScorer, which penult does not support"),
    ],
)
def test_the_kind_that_the_files_state(tmp_path, model_type, message):
    """The model_type of config_sentence_transformers.json applies whatever the modules are, also with a pooling argument."""
    folder = tiny_model(tmp_path)
    write_json(folder / "config_sentence_transformers.json", {"model_type": model_type})
    for pooling in (None, "mean"):
        with pytest.raises(ValueError, match=message) as caught:
            Embedder.load(folder, pooling=pooling)
        assert str(folder) in str(caught.value)
        assert "pooling=" not in str(caught.value)


def test_the_usual_model_type_loads(tmp_path, embedder):
    """A folder with the model_type SentenceTransformer loads."""
    folder = tiny_model(tmp_path)
    write_json(folder / "config_sentence_transformers.json", {"model_type": "SentenceTransformer"})
    with Embedder.load(folder) as e:
        assert e.fingerprint == embedder.fingerprint


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ([("sentence_transformers.sparse_encoder.models.MLMTransformer", ""), ("x.SpladePooling", "1_P")], "a sparse encoder"),
        ([("Transformer", ""), ("sentence_transformers.sparse_encoder.modules.SpladePooling", "1_P")], "a sparse encoder"),
        ([("Transformer", ""), ("Pooling", "1_Pooling"), ("SparseAutoEncoder", "2_S")], "a sparse encoder"),
        ([("Transformer", ""), ("pylate.models.Dense.Dense", "1_Dense")], r"late-interaction model.*pylate\.models\.Dense"),
        ([("Transformer", ""), ("MultiVectorMask", "1_M")], "a late-interaction model"),
        ([("Transformer", ""), ("sentence_transformers.cross_encoder.modules.LogitScore", "1_L")], "a reranker"),
    ],
)
def test_the_kind_that_a_module_shows(tmp_path, listed, message):
    """For a sparse, late-interaction or scoring model, the error states its kind and does not suggest a pooling."""
    folder = tiny_model(tmp_path)
    list_modules(folder, *listed)
    with pytest.raises(ValueError, match=message) as caught:
        Embedder.load(folder)
    assert "pooling=" not in str(caught.value)
    assert "Load a text embedding model" in str(caught.value)


@pytest.mark.parametrize("tokens_step", ["Dense", "Normalize", None])
def test_modules_without_a_pooling(tmp_path, tokens_step):
    """A transformer whose modules never pool gives a vector per token, which is late interaction."""
    folder = tiny_model(tmp_path)
    list_modules(folder, ("Transformer", ""), *([(tokens_step, "1_X")] if tokens_step else []))
    write_json(folder / "1_X" / "config.json", {"module_input_name": "token_embeddings"})
    with pytest.raises(ValueError, match=r"late-interaction model.*no Pooling") as caught:
        Embedder.load(folder)
    assert "pooling=" not in str(caught.value)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("BertForSequenceClassification", "a reranker"),
        ("XLMRobertaForSequenceClassification", "a reranker"),
        ("BertForTokenClassification", "a token classifier"),
        ("RobertaForQuestionAnswering", "a token classifier"),
    ],
)
def test_the_kind_that_the_architecture_shows(tmp_path, architecture, message):
    """Without modules, config.json's architecture shows a reranker or a token classifier, and no pooling is suggested."""
    folder = tiny_model(tmp_path, pooling=None)
    write_json(folder / "config.json", {"architectures": [architecture], "max_position_embeddings": 128})
    with pytest.raises(ValueError, match=message) as caught:
        Embedder.load(folder)
    assert architecture in str(caught.value)
    assert "pooling=" not in str(caught.value)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("HF_ColBERT", "a late-interaction model"),
        ("ColPaliForRetrieval", "a late-interaction model"),
        ("StaticModel", "static"),
        ("DebertaV2ForMultipleChoice", "not a text embedding model"),
        ("BertForNextSentencePrediction", "not a text embedding model"),
        ("ViTForImageClassification", "not a text embedding model"),
    ],
)
def test_further_kinds_that_the_architecture_shows(tmp_path, architecture, message):
    """The architecture also shows late interaction, static embeddings and heads, and no pooling is suggested."""
    folder = tiny_model(tmp_path, pooling=None)
    write_json(folder / "config.json", {"architectures": [architecture], "max_position_embeddings": 128})
    with pytest.raises(ValueError, match=str(tmp_path)) as caught:
        Embedder.load(folder)
    assert message in str(caught.value).replace(str(tmp_path), "").replace(f"({architecture})", "")
    assert "pooling=" not in str(caught.value)


@pytest.mark.parametrize("kind", ["vision_config", "audio_config"])
@pytest.mark.parametrize("names", [["CLIPModel"], ["ClapModel"], None])
def test_models_of_texts_and_media(tmp_path, kind, names):
    """For a model of texts and images or audio, the error says so and suggests exporting its text vector."""
    folder = tiny_model(tmp_path, pooling=None)
    config = {"architectures": names, kind: {"hidden_size": 8}, "text_config": {"hidden_size": 32}}
    write_json(folder / "config.json", config)
    with pytest.raises(ValueError, match=r"takes texts and images or audio .*pass layer=None") as caught:
        Embedder.load(folder)
    assert "pooling=" not in str(caught.value)
    write_json(folder / "config.json", config | {kind: ["x"]})
    with pytest.raises(ValueError, match=rf"config\.json: {kind} is"):
        Embedder.load(folder)


def test_an_encoder_without_modules_needs_a_pooling(tmp_path):
    """If nothing shows another kind of model, the error suggests pooling=."""
    folder = tiny_model(tmp_path, pooling=None)
    write_json(folder / "config.json", {"architectures": ["BertModel"], "max_position_embeddings": 128})
    with pytest.raises(ValueError, match=r"pooling='mean', 'cls', 'max' or 'last'"):
        Embedder.load(folder)


def test_a_static_embedding_has_no_layers(tmp_path):
    """A static embedding accepts neither layer nor pooling."""
    static_model(tmp_path)
    for asked in ({"layer": 0}, {"layer": None}, {"pooling": "mean"}, {"pooling": ["mean", "cls"]}):
        with pytest.raises(ValueError, match="static embedding: it has no layers and does its own pooling") as caught:
            Embedder.load(tmp_path, **asked)
        assert "pooling=" not in str(caught.value)


# --- routers


@pytest.mark.parametrize(
    ("structure", "parameters", "expected"),
    [
        ({"query": ["q"], "document": ["d"]}, {}, ("d", "q")),
        ({"query": ["q"], "passage": ["p"]}, {}, ("p", "q")),
        ({"query": ["q"], "corpus": ["c"]}, {}, ("c", "q")),
        ({"query": ["q"], "doc": ["c"]}, {}, ("c", "q")),
        ({"query": ["q"], "doc": ["c"], "document": ["d"]}, {}, ("d", "q")),
        ({"text": ["t"], "image": ["i"]}, {}, ("t", "t")),
        ({"a": ["a"], "b": ["b"]}, {"route_mappings": {"('query', 'text')": "a", "('document', 'text')": "b"}}, ("b", "a")),
        ({"a": ["a"], "b": ["b"]}, {"route_mappings": {"('query', None)": "a", "(None, 'text')": "b"}}, ("b", "a")),
        ({"a": ["a"], "b": ["b"]}, {"route_mappings": {"(None, None)": "a", "('query', None)": "b"}}, ("a", "b")),
        ({"query": ["q"], "document": ["d"], "x": ["x"]}, {"route_mappings": {"(None, 'text')": "x"}}, ("x", "x")),
        ({"query": ["q"], "document": ["d"]}, {"route_mappings": {"('query', 'image')": "document"}}, ("d", "q")),
        (
            {"query": ["q"], "document": ["d"], "x": ["x"]},
            {"route_mappings": {"('query', ('image', 'text'))": "x", "(None, ('text',))": "x"}},
            ("d", "q"),
        ),
        ({"query": ["q"], "document": ["d"]}, {"route_mappings": {}, "default_route": "query"}, ("d", "q")),
        ({"query": ["q"], "document": ["d"]}, {"route_mappings": None, "allow_empty_key": False}, ("d", "q")),
    ],
)
def test_the_route_of_a_role(tmp_path, structure, parameters, expected):
    """Mappings take precedence over names, the exact pair over one with a gap; other modalities never serve text."""
    list_modules(tmp_path, ("Router", ""))
    router(tmp_path, structure, **parameters)
    assert folders(read_modules(tmp_path)) == {"document": [expected[0]], "query": [expected[1]]}


@pytest.mark.parametrize("kind", ["Router", "Asym"])
@pytest.mark.parametrize("name", ["router_config.json", "config.json"])
def test_routers_of_older_versions(tmp_path, kind, name):
    """Asym is the older name of a router, config.json the older name of its file; modules after it serve both roles."""
    list_modules(tmp_path, ("Transformer", ""), ("Pooling", "1_P"), (kind, "2_R"), ("Normalize", "3_N"))
    router(tmp_path / "2_R", {"query": ["q"], "doc": ["d", "e"]}, types=dict.fromkeys("qde", f"{PACKAGE}Dense"), name=name)
    actual = read_modules(tmp_path)
    assert folders(actual) == {"document": ["", "1_P", "2_R/d", "2_R/e", "3_N"], "query": ["", "1_P", "2_R/q", "3_N"]}
    assert [module.kind for module in actual["query"]] == ["Transformer", "Pooling", "Dense", "Normalize"]


def test_the_newer_file_of_a_router_takes_precedence(tmp_path):
    """If a folder has both files, router_config.json is read."""
    list_modules(tmp_path, ("Router", ""))
    router(tmp_path, {"query": ["old"], "document": ["old"]}, name="config.json")
    router(tmp_path, {"query": ["new"], "document": ["new"]})
    assert folders(read_modules(tmp_path)) == {"document": ["new"], "query": ["new"]}


def test_a_router_in_a_router(tmp_path):
    """Routers nest; the folder of the inner one is inside that of the outer one."""
    list_modules(tmp_path, ("Router", "r"))
    router(tmp_path / "r", {"query": ["s"], "document": ["d"]}, types={"s": "Router", "d": "Transformer"})
    router(tmp_path / "r" / "s", {"query": ["q"], "document": ["e"]})
    assert folders(read_modules(tmp_path)) == {"document": ["r/d"], "query": ["r/s/q"]}


def test_a_router_that_names_itself(tmp_path):
    """A router inside itself is an error."""
    list_modules(tmp_path, ("Router", ""))
    router(tmp_path, {"query": ["."], "document": ["."]}, types={".": "Router"})
    with pytest.raises(ValueError, match="nests routers more than four deep"):
        read_modules(tmp_path)


def test_many_routers_in_routers(tmp_path, monkeypatch):
    """Files of a few bytes cannot make penult read a router's file a hundred thousand times."""
    list_modules(tmp_path, ("Router", "r"))
    place = tmp_path / "r"
    for _ in range(3):
        router(place, {"query": ["r"] * 60, "document": ["r"] * 60}, types={"r": "Router"})
        place /= "r"
    router(place, {"query": ["t"], "document": ["t"]})
    reads = []

    def counted(path, really=modules.read_object):
        reads.append(path)
        assert len(reads) < 1000
        return really(path)

    monkeypatch.setattr(modules, "read_object", counted)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        read_modules(tmp_path)


def test_a_router_without_its_file(tmp_path):
    """The error names a router's missing file."""
    list_modules(tmp_path, ("Router", "r"))
    with pytest.raises(FileNotFoundError, match=r"r has no router_config\.json, which modules\.json needs"):
        read_modules(tmp_path)


def test_a_router_without_a_route_for_a_role(tmp_path):
    """A role without a route is an error that lists the routes; the default route is not used silently."""
    list_modules(tmp_path, ("Router", ""))
    router(tmp_path, {"query": ["q"], "image": ["i"]}, default_route="query")
    with pytest.raises(
        ValueError, match=r"no route for a document; its routes are query, image\. Rename one of them to 'document'"
    ):
        read_modules(tmp_path)


WHOLE = {"types": {"q": "Transformer"}, "structure": {"query": ["q"], "document": ["q"]}, "parameters": {}}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"types": None}, "must have the objects"),
        ({"types": ["q"]}, "must have the objects"),
        ({"types": {}}, "states no type for the module 'q'"),
        ({"types": {"q": 1}}, "states no type for the module 'q'"),
        ({"structure": {}}, "must have the objects"),
        ({"structure": {"query": "q"}}, "must have the objects"),
        ({"structure": {"query": [1], "document": ["q"]}}, "states no type for the module '1'"),
        ({"structure": {"query": [["q"]], "document": ["q"]}}, "states no type for the module"),
        ({"structure": {"query": [{}], "document": ["q"]}}, "states no type for the module"),
        (
            {"structure": {"query": ["../q"], "document": ["q"]}, "types": {"../q": "Transformer", "q": "Transformer"}},
            "outside",
        ),
        ({"parameters": None}, "must have the objects"),
        ({"parameters": []}, "must have the objects"),
        ({"parameters": {"routing": 1}}, "the parameter 'routing', which penult does not support"),
        ({"parameters": {"route_mappings": ["a"]}}, "route_mappings must be an object"),
        ({"parameters": {"route_mappings": {"query": "query"}}}, "the route 'query' is not a pair"),
        ({"parameters": {"route_mappings": {"('query',)": "query"}}}, "is not a pair"),
        ({"parameters": {"route_mappings": {"('query', 'text', 'x')": "query"}}}, "is not a pair"),
        ({"parameters": {"route_mappings": {"(1, 'text')": "query"}}}, "is not a pair"),
        ({"parameters": {"route_mappings": {"('query', ['text'])": "query"}}}, "is not a pair"),
        ({"parameters": {"route_mappings": {"('query', {})": "query"}}}, "is not a pair"),
        ({"parameters": {"route_mappings": {"5": "query"}}}, "is not a pair"),
        ({"parameters": {"route_mappings": {"(" * 5000: "query"}}}, "is not a pair"),
        ({"parameters": {"route_mappings": {"open('/etc/passwd')": "query"}}}, "is not a pair"),
        ({"parameters": {"route_mappings": {"('query', 'text')": "gone"}}}, "no route for a query"),
        ({"parameters": {"route_mappings": {"('query', 'text')": ["query"]}}}, "no route for a query"),
    ],
)
def test_a_malformed_router(tmp_path, changed, message):
    """Any invalid content of a router's file is one error that names the file."""
    list_modules(tmp_path, ("Router", ""))
    write_json(tmp_path / "router_config.json", WHOLE | changed)
    with pytest.raises(ValueError, match=message) as caught:
        read_modules(tmp_path)
    assert "router_config.json" in str(caught.value)


@pytest.mark.parametrize("key", ["((['query'],), 'text')", "(({},), None)", "((set(),), 'text')"])
def test_a_route_with_unhashable_names(tmp_path, key):
    """A task that is a tuple of lists is rejected like any other that is not a name."""
    list_modules(tmp_path, ("Router", ""))
    write_json(tmp_path / "router_config.json", WHOLE | {"parameters": {"route_mappings": {key: "query"}}})
    with pytest.raises(ValueError, match=r"router_config\.json: the route .* is not a pair"):
        read_modules(tmp_path)


@pytest.mark.parametrize("key", ["{'query', 'text'}", "'qt'", "['query', 'text']", "{'query': 1, 'text': 2}"])
def test_a_route_that_is_not_a_tuple(tmp_path, key):
    """Only a tuple is a pair: a set has no order, and a word of two letters is not a task and a modality."""
    list_modules(tmp_path, ("Router", ""))
    write_json(tmp_path / "router_config.json", WHOLE | {"parameters": {"route_mappings": {key: "query"}}})
    with pytest.raises(ValueError, match="is not a pair"):
        read_modules(tmp_path)


# --- junk

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(["q", "d", ".", "Transformer", "Pooling", "Router", "query", "document"]) | st.text(max_size=8)
routers = st.fixed_dictionaries(
    {},
    optional={
        "types": json_values | st.dictionaries(names, names | json_values, max_size=3),
        "structure": json_values | st.dictionaries(names, json_values | st.lists(names | json_values, max_size=3), max_size=3),
        "parameters": json_values
        | st.fixed_dictionaries(
            {},
            optional={
                "default_route": json_values,
                "allow_empty_key": json_values,
                "route_mappings": json_values
                | st.dictionaries(
                    st.text(max_size=12) | st.tuples(names | st.none(), names | st.none()).map(str),
                    names | json_values,
                    max_size=3,
                ),
            },
        ),
    },
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """One folder for all examples."""
    return tmp_path_factory.mktemp("junk")


def check(folder, name):
    """Read the modules: they are returned, or one error names the file."""
    try:
        read_modules(folder)
    except (ValueError, FileNotFoundError) as error:
        assert name in str(error)  # noqa: PT017 - an error is one of the outcomes


@settings(deadline=None, max_examples=150)
@given(routers)
def test_any_router(place, content):
    """Whatever a router's file contains: routes, or one error that names the file."""
    list_modules(place, ("Router", ""))
    write_json(place / "router_config.json", content)
    check(place, "router_config.json")


@settings(deadline=None, max_examples=100)
@given(json_values | st.lists(st.fixed_dictionaries({"type": names | json_values}, optional={"path": names | json_values})))
def test_any_list_of_modules(tmp_path_factory, content):
    """Whatever modules.json contains: modules, or one error that names a file of the folder."""
    folder = tmp_path_factory.mktemp("junk")
    write_json(folder / "modules.json", content)
    check(folder, str(folder))


@settings(deadline=None, max_examples=50)
@given(json_values)
def test_any_model_type(place, value):
    """Whatever model_type is: the usual kind, or one error that names the folder."""
    folder = place / "typed"
    write_json(folder / "config_sentence_transformers.json", {"model_type": value})
    check(folder, str(folder))
