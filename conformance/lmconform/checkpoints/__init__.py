"""Checkpoints that the suite makes: random ones, and instruments whose scores are a measurement."""
