"""The conformance tests, one file for each page of the spec, and the words that they are written in."""
