"""An artifact beside other engines on this CPU: the same work, checked, in turns (docs/BENCHMARKING.md)."""
