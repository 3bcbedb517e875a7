"""The fast path of the reference: the same model and the same draws, with less in the way.

``static.py`` is its cache, ``fused.py`` its modules, ``draws.py`` its sampling, ``record.py`` what the steps leave for
the host; ``generator.py`` makes steps of them, and ``prepare.py`` compiles and records these.

    generator = refdecoder.FastGenerator(model, rows=1, capacity=4096)
    [completion] = generator.generate([refdecoder.Request(prompt=[1, 2, 3], max_new_tokens=100)])
"""

from .fused import fused
from .generator import FastGenerator
from .static import StaticCache

__all__ = ["FastGenerator", "StaticCache", "fused"]
