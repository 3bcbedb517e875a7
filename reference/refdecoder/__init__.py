"""refdecoder: a llama decoder to read in one sitting, and to use.

Read ``model.py`` first, then ``rope.py`` and ``cache.py``, then ``generate.py`` with ``sampling.py`` and
``stopping.py``. ``config.py`` and ``checkpoint.py`` load Hugging Face checkpoints.

    model = refdecoder.load("path/to/checkpoint")
    [completion] = refdecoder.generate(model, [refdecoder.Request(prompt=[1, 2, 3])])
"""

from .cache import Cache
from .checkpoint import load
from .config import DecoderConfig, Rope
from .errors import CheckpointError, InputError
from .generate import Completion, Event, Request, generate, score, stream
from .model import Attention, Decoder
from .sampling import Sampler
from .stopping import Stops

__all__ = [
    "Attention",
    "Cache",
    "CheckpointError",
    "Completion",
    "Decoder",
    "DecoderConfig",
    "Event",
    "InputError",
    "Request",
    "Rope",
    "Sampler",
    "Stops",
    "generate",
    "load",
    "score",
    "stream",
]
