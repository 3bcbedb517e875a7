"""refdecoder: a llama decoder to read in one sitting, and to use.

Read ``model.py`` first, then ``rope.py`` and ``cache.py``, then ``generate.py`` with ``sampling.py`` and
``stopping.py``. ``config.py`` and ``checkpoint.py`` load Hugging Face checkpoints: of llama, of phi3, which is a llama
once its tensors are cut, and of gpt2, which ``gpt2.py`` describes. ``fast`` runs the same model where speed counts.
``parallel.py`` shares a model among several processes, and ``ranks.py`` runs them.

    model = refdecoder.load("path/to/checkpoint")
    [completion] = refdecoder.generate(model, [refdecoder.Request(prompt=[1, 2, 3])])
"""

from .cache import Cache
from .checkpoint import build, load
from .config import Config, DecoderConfig, GPT2Config, Rope, config_from_dict
from .errors import CheckpointError, InputError
from .fast import FastGenerator, fused
from .generate import Completion, Event, Request, generate, score, stream
from .gpt2 import GPT2
from .model import Attention, CausalLM, Decoder
from .sampling import Sampler
from .stopping import Stops

__all__ = [
    "GPT2",
    "Attention",
    "Cache",
    "CausalLM",
    "CheckpointError",
    "Completion",
    "Config",
    "Decoder",
    "DecoderConfig",
    "Event",
    "FastGenerator",
    "GPT2Config",
    "InputError",
    "Request",
    "Rope",
    "Sampler",
    "Stops",
    "build",
    "config_from_dict",
    "fused",
    "generate",
    "load",
    "score",
    "stream",
]
