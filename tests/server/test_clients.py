"""The clients that people have: openai, LangChain's and LlamaIndex's classes, each as its own package ships it."""

import numpy as np
import openai
import pytest
from langchain_openai import OpenAIEmbeddings
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference

TEXTS = ["the cat sat", "a dog on the mat", "the moon"]


@pytest.fixture(scope="module")
def expected(embedder):
    return embedder.embed(TEXTS)


def test_openai(served, expected):
    """The official client, which asks for base64 unless told, gets the very same float32."""
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
    """The official client's awaiting half works as well."""
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="x") as client:
        answer = await client.embeddings.create(model="m", input=TEXTS)
    np.testing.assert_array_equal(np.array([item.embedding for item in answer.data], np.float32), expected)


def test_langchain_openai(served, expected):
    """LangChain's OpenAIEmbeddings works once it sends texts instead of another model's token ids."""
    lang = OpenAIEmbeddings(base_url=f"{served.url}/v1", api_key="x", model="m", check_embedding_ctx_length=False)
    np.testing.assert_array_equal(np.array(lang.embed_documents(TEXTS), np.float32), expected)
    np.testing.assert_array_equal(np.array(lang.embed_query(TEXTS[0]), np.float32), expected[0])


def test_llama_index_openai_like(served, expected):
    """LlamaIndex's OpenAILikeEmbedding works."""
    llama = OpenAILikeEmbedding(model_name="m", api_base=f"{served.url}/v1", api_key="x")
    np.testing.assert_array_equal(np.array(llama.get_text_embedding_batch(TEXTS), np.float32), expected)
    np.testing.assert_array_equal(np.array(llama.get_query_embedding(TEXTS[0]), np.float32), expected[0])


async def test_llama_index_tei(served, expected):
    """LlamaIndex's TextEmbeddingsInference works, blocking and awaited."""
    llama = TextEmbeddingsInference(model_name="m", base_url=served.url)
    np.testing.assert_array_equal(np.array(llama.get_text_embedding_batch(TEXTS), np.float32), expected)
    found = await llama.aget_text_embedding(TEXTS[0])
    np.testing.assert_array_equal(np.array(found, np.float32), expected[0])
