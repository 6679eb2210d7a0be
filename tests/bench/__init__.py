"""Benchmarks: `make bench NAME=<module>`; each prints its figures last, one JSON object a line."""
