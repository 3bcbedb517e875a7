"""lmconform: the standard for decoder-only language models, and the suite that checks engines against it.

Importing this package loads neither torch nor transformers, so that an adapter can import ``lmconform.adapter`` in
the engine's own environment.
"""

__version__ = "0.1.0"
