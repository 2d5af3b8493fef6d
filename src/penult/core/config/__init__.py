"""What the files of a model's folder state: modules, weights of modules, tokenizer and transformer settings."""
