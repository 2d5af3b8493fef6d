"""Files to vectors, a million rows and more: jobs that survive a crash, on one machine or a cluster.

Importing this costs no engine and no Arrow: `BatchEmbedder` travels to workers that open the model themselves.
"""

from penult.bulk.batch import BatchEmbedder

__all__ = ["BatchEmbedder"]
