"""DeepSparse's interface: Pipeline, Engine, server routes, config file and command line.

Nothing imports it but `penult` (lazily) and `penult.cli`.
"""
