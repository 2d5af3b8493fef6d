"""The version of llama-index-embeddings-penult, defined only here."""

__version__ = "0.1.0"
