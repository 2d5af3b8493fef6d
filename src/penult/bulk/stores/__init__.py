"""Vector stores as targets of `penult ingest`."""
