"""An adapter to start from. Fill in ``load`` and ``score``, delete what your engine does not have, then run

    lmconform check THIS_FILE.py:MyEngine

The file runs in your engine's environment, which needs NumPy; ``--python PATH`` names its interpreter. What you
override is what the suite exercises. Raise ``Refused`` for input that the engine declines on purpose, ``NotOffered``
for what it cannot do; any other exception is reported as an error of the engine.
"""

from lmconform.adapter import Choices, Completion, Engine, Model, NotOffered, Precision, Session


class MyEngine(Engine):
    name = "my-engine"
    version = "0.1"
    # The number formats set the error budget: declare what the engine really computes in.
    precision = Precision(weights="float32", compute="float32", kv_cache="float32", scores="float32")
    # What engines may choose; the suite holds you to what you declare. What you leave out is unspecified.
    choices = Choices(scores="logits")

    def __init__(self, device="cpu"):
        """Options arrive as strings: --option device=cuda."""
        self.device = device

    def accepts(self, config):
        """Return why a checkpoint with this config.json cannot be loaded, or None. Without this, llama alone is."""
        if config["model_type"] not in ("llama", "phi3", "gpt2"):  # delete those that your engine does not load
            return f"model_type {config['model_type']} is not supported"
        if config.get("sliding_window"):  # as some phi3 have: delete this if yours knows windows
            return "sliding windows are not supported"
        return "scaled RoPE is not supported" if config.get("rope_scaling") else None

    def load(self, checkpoint, needs):
        """Load config.json and model.safetensors from the directory ``checkpoint`` (a pathlib.Path)."""
        return MyModel(checkpoint, self.device)


class MyModel(Model):
    def __init__(self, checkpoint, device):
        self.vocab_size = 0  # the width of every row of scores
        raise NotOffered("load: fill in MyModel.__init__")

    def score(self, tokens):
        """Return an array [T, V] of logits or log-probabilities; row t is for the token that follows tokens[t]."""
        raise NotOffered("score")

    def score_batch(self, sequences):
        """The same for sequences of different lengths in one call: a list of arrays, without padding."""
        raise NotOffered("score_batch")

    def open(self):
        """Return an empty KV cache."""
        return MySession()

    def generate(self, requests):
        """Continue all requests in one batch. None in a request means off: send your engine the neutral value."""
        return [Completion(tokens=()) for request in requests]


class MySession(Session):
    def extend(self, tokens):
        """Append the tokens to the cache and return their scores [n, V]."""
        raise NotOffered("extend")
