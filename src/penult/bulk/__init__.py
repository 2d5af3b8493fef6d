"""Embed files of a million rows and more, in jobs that resume after a crash, on one machine or a cluster.

Importing this package loads neither the runtime nor Arrow: `BatchEmbedder` is pickled to workers, which load the model.
"""

from penult.bulk.batch import BatchEmbedder

__all__ = ["BatchEmbedder"]
