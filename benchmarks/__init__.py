"""Microbenchmarks (``make bench``) and the table of the README."""
