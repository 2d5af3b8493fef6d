"""DeepSparse's interface: Pipeline, Engine, server routes, config file and command line.

Only `penult` (lazily) and `penult.cli` import it.
"""
