"""Everything about a GPU that is measured rather than calculated, in one command: ``benchmarks/gpu/run.sh OUT`` (README.md)."""
