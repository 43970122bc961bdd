"""Fuzz targets. `fuzz/fuzz_NAME.py` has `one(data)`, which raises if something is wrong, and `SEEDS` to begin with."""
