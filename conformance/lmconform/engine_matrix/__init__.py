"""Many engines before the suite, each in an environment of its own: one table of what was found."""
