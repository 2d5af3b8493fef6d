"""The one place that holds the version of penult."""

__version__ = "0.1.0"
