"""LangChain integration of penult."""

from langchain_penult._version import __version__
from langchain_penult.embeddings import PenultEmbeddings

__all__ = ["PenultEmbeddings", "__version__"]
