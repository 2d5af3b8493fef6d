"""LlamaIndex integration of penult."""

from llama_index.embeddings.penult._version import __version__
from llama_index.embeddings.penult.base import PenultEmbedding

__all__ = ["PenultEmbedding", "__version__"]
