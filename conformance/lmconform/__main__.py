"""``python -m lmconform``."""

from lmconform.cli import main

main()
