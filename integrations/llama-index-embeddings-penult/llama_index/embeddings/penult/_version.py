"""The one place that holds the version of llama-index-embeddings-penult."""

__version__ = "0.1.0"
