"""Output of bulk jobs: Parquet, Lance, .npy or JSON lines."""
