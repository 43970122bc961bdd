"""Benchmarks: `make bench-NAME` runs `python -m bench.NAME` and writes `bench-out/NAME.json`. See README.md."""
