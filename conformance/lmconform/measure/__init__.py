"""The data sheet of an engine: what its mechanisms are, as numbers read from outside."""
