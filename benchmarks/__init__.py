"""Benchmarks of any engine through the adapter: times in turn, ratios, and what was counted. See docs/benchmarks.md."""
