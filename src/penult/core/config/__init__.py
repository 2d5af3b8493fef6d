"""Configuration files of a model's folder: modules, module weights, tokenizer and transformer settings."""
