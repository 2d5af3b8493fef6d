"""The one place that holds the version of langchain-penult."""

__version__ = "0.1.0"
