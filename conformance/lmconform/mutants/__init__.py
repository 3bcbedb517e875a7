"""Mechanical mutants of the reference's computing core: small changes, of which the suite should notice what matters.

A planted fault is chosen by a person, who may choose what the suite sees. A mutant is chosen by a rule and a seed.
"""
