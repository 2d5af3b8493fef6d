"""A bulk job: shards, workers, the manifest of finished shards, progress."""
