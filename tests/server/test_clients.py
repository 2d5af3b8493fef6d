"""Clients of other packages: openai in Python and Node, Hugging Face, frameworks."""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import openai
import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from langchain_openai import OpenAIEmbeddings
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference

from penult import Embedder

TEXTS = ["the cat sat", "a dog on the mat", "the moon"]


@pytest.fixture(scope="module")
def expected(embedder):
    return embedder.embed(TEXTS)


def test_openai(served, expected):
    """OpenAI's client, which requests base64 by default, gets identical float32 values."""
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="x") as client:
        for options in ({}, {"encoding_format": "float"}):
            answer = client.embeddings.create(model="m", input=TEXTS, **options)
            np.testing.assert_array_equal(np.array([item.embedding for item in answer.data], np.float32), expected)
        short = client.embeddings.create(model="m", input=TEXTS[0], dimensions=4)
        assert len(short.data[0].embedding) == 4
        assert len(client.models.list().data) == 1
        with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
            client.embeddings.create(model="m", input=[1, 2])
        with pytest.raises(openai.UnprocessableEntityError, match="the limit is 100"):
            client.embeddings.create(model="m", input=["a"] * 101)


async def test_openai_async(served, expected):
    """OpenAI's async client works."""
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="x") as client:
        answer = await client.embeddings.create(model="m", input=TEXTS)
    np.testing.assert_array_equal(np.array([item.embedding for item in answer.data], np.float32), expected)


def test_langchain_openai(served, expected):
    """LangChain's OpenAIEmbeddings works if it is configured to send texts instead of token ids."""
    lang = OpenAIEmbeddings(base_url=f"{served.url}/v1", api_key="x", model="m", check_embedding_ctx_length=False)
    np.testing.assert_array_equal(np.array(lang.embed_documents(TEXTS), np.float32), expected)
    np.testing.assert_array_equal(np.array(lang.embed_query(TEXTS[0]), np.float32), expected[0])


def test_llama_index_openai_like(served, expected):
    """LlamaIndex's OpenAILikeEmbedding works."""
    llama = OpenAILikeEmbedding(model_name="m", api_base=f"{served.url}/v1", api_key="x")
    np.testing.assert_array_equal(np.array(llama.get_text_embedding_batch(TEXTS), np.float32), expected)
    np.testing.assert_array_equal(np.array(llama.get_query_embedding(TEXTS[0]), np.float32), expected[0])


async def test_llama_index_tei(served, expected):
    """LlamaIndex's TextEmbeddingsInference works, sync and async."""
    llama = TextEmbeddingsInference(model_name="m", base_url=served.url)
    np.testing.assert_array_equal(np.array(llama.get_text_embedding_batch(TEXTS), np.float32), expected)
    result = await llama.aget_text_embedding(TEXTS[0])
    np.testing.assert_array_equal(np.array(result, np.float32), expected[0])


def test_huggingface_hub(served, expected):
    """InferenceClient works with the server's URL as model, as for Hugging Face's own endpoints."""
    client = InferenceClient(model=served.url)
    np.testing.assert_array_equal(np.stack([client.feature_extraction(text)[0] for text in TEXTS]), expected)
    np.testing.assert_array_equal(client.feature_extraction(TEXTS), expected)
    short = client.feature_extraction(TEXTS[0], normalize=True, truncate=True, truncation_direction="left", dimensions=4)
    assert short.shape == (1, 4)
    scores = client.sentence_similarity(TEXTS[0], other_sentences=TEXTS, model=f"{served.url}/similarity")
    np.testing.assert_allclose(
        scores, expected @ expected[0] / np.linalg.norm(expected[0]) / np.linalg.norm(expected, axis=1), atol=1e-6
    )
    with pytest.raises(HfHubHTTPError, match="422"):
        client.feature_extraction(TEXTS[0], prompt_name="poem")
    by_name = InferenceClient(base_url=f"{served.url}/", token="x")
    np.testing.assert_array_equal(by_name.feature_extraction(TEXTS), expected)


async def test_huggingface_hub_async(served, expected):
    """The async client works with a URL that ends in a slash."""
    async with AsyncInferenceClient(model=f"{served.url}/") as client:
        np.testing.assert_array_equal(await client.feature_extraction(TEXTS), expected)


def test_haystack(served, expected, tiny, monkeypatch):
    """Haystack's embedders for TEI work for a text and for documents, with and without batches."""
    monkeypatch.setenv("HAYSTACK_TELEMETRY_ENABLED", "False")
    pytest.importorskip("haystack_integrations.components.embedders.huggingface_api", reason="needs huggingface-api-haystack")
    from haystack import Document
    from haystack_integrations.components.embedders.huggingface_api import (
        HuggingFaceAPIDocumentEmbedder,
        HuggingFaceAPITextEmbedder,
    )

    kind = {"api_type": "text_embeddings_inference", "api_params": {"url": served.url}, "token": None}
    result = HuggingFaceAPITextEmbedder(**kind, normalize=True).run(text=TEXTS[0])["embedding"]
    np.testing.assert_array_equal(np.array(result, np.float32), expected[0])
    result = HuggingFaceAPITextEmbedder(**kind).run(text=TEXTS[0])["embedding"]  # its default: vectors as they are
    with Embedder.load(tiny, normalize=False, threads=1) as plain:
        np.testing.assert_array_equal(np.array(result, np.float32), plain.embed(TEXTS[:1])[0])
    documents = [Document(content=text) for text in TEXTS]
    for options in ({}, {"batch_size": 2}, {"truncate": False}):
        result = HuggingFaceAPIDocumentEmbedder(**kind, **options, normalize=True, progress_bar=False).run(documents=documents)[
            "documents"
        ]
        np.testing.assert_array_equal(np.array([one.embedding for one in result], np.float32), expected)


def test_openai_in_node(served, expected, tmp_path_factory):
    """OpenAI's JavaScript client works, with base64 and with floats."""
    package = node_package("openai")
    script = """
        const OpenAI = require(process.argv[1]);
        const client = new OpenAI({baseURL: process.argv[2] + "/v1", apiKey: "x"});
        (async () => {
            const input = JSON.parse(process.argv[3]), found = [];
            for (const options of [{}, {encoding_format: "float"}]) {
                const answer = await client.embeddings.create({model: "m", input, ...options});
                found.push(answer.data.map(item => item.embedding));
            }
            const names = [];
            for await (const model of client.models.list()) names.push(model.id);
            let refused;
            try { await client.embeddings.create({model: "m", input: []}); } catch (error) { refused = [error.status, error.message]; }
            console.log(JSON.stringify({found, names, refused}));
        })();
    """
    done = subprocess.run(
        ["node", "-e", script, str(package), served.url, json.dumps(TEXTS)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    output = json.loads(done.stdout)
    for result in output["found"]:
        np.testing.assert_array_equal(np.array(result, np.float32), expected)
    assert len(output["names"]) == 1
    assert output["refused"][0] == 400
    assert "at least one text" in output["refused"][1]


def node_package(name: str) -> Path:
    """Return the folder of an npm package, installed once into a cache; skip the test if node, npm or the registry is missing."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("needs node and npm")
    folder = Path(tempfile.gettempdir()) / f"penult-test-node-{os.getuid()}"
    package = folder / "node_modules" / name
    if not (package / "package.json").exists():
        command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder), f"{name}@6"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=90)
        except subprocess.TimeoutExpired:
            pytest.skip(f"npm did not fetch {name} within 90 s")
        if done.returncode:
            pytest.skip(f"npm cannot fetch {name}: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ''}")
    return package
