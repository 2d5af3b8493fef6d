"""The version of langchain-penult, defined only here."""

__version__ = "0.1.0"
