"""Graph analysis by structure, independent of the names that a model family uses."""
