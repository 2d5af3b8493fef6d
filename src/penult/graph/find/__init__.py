"""Find things in a graph by its structure, never by a model family's names."""
