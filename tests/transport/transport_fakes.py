"""Adapters for the tests, hosted from this file in a process of their own: NumPy and the contract alone."""

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import time

import numpy as np

from lmconform.adapter import (
    AttentionOperator,
    Choices,
    Completion,
    Engine,
    Model,
    NotOffered,
    Precision,
    Refused,
    RMSNormOperator,
    RopeOperator,
    Session,
)

V = 11


def toy_scores(tokens, start=0, vocab_size=V, dtype=np.float32):
    """[T, V]: 100 * position + token + column / 16, exact in float16 for short sequences."""
    rows = np.array([100 * (start + t) + token for t, token in enumerate(tokens)], dtype=np.float64)
    return (rows.reshape(-1, 1) + np.arange(vocab_size) / 16).astype(dtype)


class ToySession(Session):
    def __init__(self, tokens=()):
        self.tokens = list(tokens)

    def extend(self, tokens):
        scores = toy_scores(tokens, len(self.tokens))
        self.tokens += tokens
        return scores

    def fork(self):
        return ToySession(self.tokens)

    def truncate(self, length):
        if length > len(self.tokens):
            raise Refused(f"cannot truncate {len(self.tokens)} tokens to {length}")
        del self.tokens[length:]

    def cache_bytes(self):
        return np.int64(8 * len(self.tokens))

    def close(self):
        print("session closed", flush=True)


class ToyModel(Model):
    vocab_size = V
    max_length = 4096
    slots = 3

    def __init__(self, checkpoint, needs):
        self.checkpoint, self.needs = checkpoint, needs

    def score(self, tokens):
        return toy_scores(tokens)

    def score_batch(self, sequences):
        return [toy_scores(tokens) for tokens in sequences]

    def open(self):
        return ToySession()

    def generate(self, requests):
        """What was asked comes back as the text, so that a test sees every field that arrived."""
        return [
            Completion(
                tokens=tuple(np.arange(k, k + 3)),
                finish_reason="length",
                text=f"{request!r} {self.needs!r} {self.checkpoint}",
                logprobs=({np.int64(1): np.float32(-0.5), 2: float("-inf")}, {3: 0.0}, {4: -1e-300}),
                pieces=((k, k + 1), (k + 2,)),
                cached_tokens=np.int64(2),
            )
            for request in requests
            for k in range(request.n)
        ]


class Toy(Engine):
    name = "toy"
    version = "1.2"
    precision = Precision(weights="bfloat16", kv_cache="fp8_e4m3")
    choices = Choices(ties="first", sampler_order=("temperature", "top_k"), batch_invariant=True)

    def __init__(self, device="cpu", dtype="float32"):
        self.device = device

    def accepts(self, config):
        question = config.get("question")
        answers = {"pid": os.getpid, "device": lambda: self.device, "path": lambda: os.pathsep.join(sys.path)}
        return str(answers[question]()) if question else None

    def regimes(self):
        return {"chunked": {"chunk": 16, "ratio": float("inf")}}

    def load(self, checkpoint, needs):
        return ToyModel(checkpoint, needs)


class Bare(Engine):
    """Overrides what it must and nothing else."""

    name = "bare"

    def load(self, checkpoint, needs):
        model = Model()
        model.vocab_size = V
        return model


def wire():
    """Descriptor on which the host writes its replies: the one pipe beside stdout and stderr that is for writing."""
    for descriptor in range(3, 64):
        try:
            if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
                return descriptor
        except OSError:
            continue
    raise AssertionError("there is no wire")


class Faulty(Engine):
    """``score`` and ``generate`` do what the option ``fault`` names; ``at`` says in which call."""

    name = "faulty"

    def __init__(self, fault="none", at="score"):
        self.fault, self.at = getattr(self, f"do_{fault}"), at
        self.perhaps("start")

    def perhaps(self, place, tokens=()):
        return self.fault(tokens) if place == self.at else None

    def load(self, checkpoint, needs):
        self.perhaps("load")
        return FaultyModel(self)

    def do_none(self, tokens):
        return toy_scores(tokens)

    def do_print(self, tokens):
        print("to stdout")
        os.write(1, b"raw, to descriptor 1\n")
        subprocess.run(["echo", "from a child"], check=True)
        assert sys.stdin.read() == ""
        return toy_scores(tokens)

    def do_raise(self, tokens):
        raise ValueError("the KV cache is\ntoo small")

    def do_unprintable(self, tokens):
        class Strange(Exception):
            def __str__(self):
                raise RuntimeError("no text")

        raise Strange

    def do_refuse(self, tokens):
        raise Refused("id 99 is out of range")

    def do_lack(self, tokens):
        raise NotOffered("no prompt log-probabilities")

    def do_sys_exit(self, tokens):
        sys.exit("gave up")

    def do_interrupt(self, tokens):
        raise KeyboardInterrupt

    def do_os_exit(self, tokens):
        for i in range(100):
            print(f"line {i}", file=sys.stderr)
        os._exit(7)

    def do_segfault(self, tokens):
        ctypes.string_at(0)

    def do_kill(self, tokens):
        os.kill(os.getpid(), signal.SIGKILL)

    def do_hang(self, tokens):
        child = subprocess.Popen(["sleep", "600"])
        print(f"child {child.pid}", flush=True)
        ctypes.PyDLL(None).sleep(600)  # PyDLL keeps the GIL, as a hang in C would

    def do_orphan(self, tokens):
        if os.fork() == 0:
            time.sleep(600)  # holds the wire open after its parent's death
        os._exit(5)

    def do_deaf(self, tokens):
        os.close(wire())
        time.sleep(600)

    def do_half(self, tokens):
        os.write(wire(), b'{"id": 3, "resu')
        time.sleep(600)

    def do_half_then_exit(self, tokens):
        os.write(
            wire(), b'{"id":3,"result":{"scores":{"dtype":"float32","shape":[500,1],"offset":0}},"bytes":2000}\n1234'
        )
        os._exit(0)

    def do_garbage(self, tokens):
        os.write(wire(), b"Loading weights: 100%\n")
        return toy_scores(tokens)

    def do_wrong_id(self, tokens):
        os.write(wire(), b'{"id": 2, "result": {}}\n')
        return toy_scores(tokens)

    def do_bare_nan(self, tokens):
        os.write(wire(), b'{"id": 3, "result": {"scores": NaN}}\n')
        return toy_scores(tokens)

    def do_rows(self, tokens):
        return toy_scores(tokens)[:-1]

    def do_columns(self, tokens):
        return toy_scores(tokens, vocab_size=V + 5)

    def do_batch_axis(self, tokens):
        return toy_scores(tokens)[None]

    def do_integers(self, tokens):
        return toy_scores(tokens, dtype=np.int64)

    def do_complex(self, tokens):
        return toy_scores(tokens, dtype=np.complex64)

    def do_lists(self, tokens):
        return toy_scores(tokens).tolist()

    def do_nothing(self, tokens):
        return None

    def do_nan(self, tokens):
        scores = toy_scores(tokens)
        scores[1, 4] = scores[2, 2] = np.nan
        return scores

    def do_plus_inf(self, tokens):
        scores = toy_scores(tokens)
        scores[2, 7] = np.inf
        return scores

    def do_minus_inf(self, tokens):
        scores = toy_scores(tokens)
        scores[:, 3] = -np.inf
        return scores


class FaultyModel(Model):
    vocab_size = V

    def __init__(self, engine):
        self.engine = engine

    def score(self, tokens):
        return self.engine.perhaps("score", tokens) if self.engine.at == "score" else toy_scores(tokens)

    def score_batch(self, sequences):
        first, *others = sequences
        return [toy_scores(first), *(self.engine.fault(tokens) for tokens in others)]

    def open(self):
        return ToySession()

    def generate(self, requests):
        return eval(requests[0].stop_strings[0], globals())


class Wide(Engine):
    """Large arrays: V is the option ``width``, and the scores have the dtype ``dtype``."""

    name = "wide"

    def __init__(self, width="11", dtype="float32"):
        self.width, self.dtype = int(width), dtype

    def load(self, checkpoint, needs):
        if self.dtype == "bfloat16":
            import ml_dtypes

            return WideModel(self.width, ml_dtypes.bfloat16)
        return WideModel(self.width, np.dtype(self.dtype))


class WideModel(Model):
    def __init__(self, width, dtype):
        self.vocab_size, self.dtype = width, dtype

    def score(self, tokens):
        scores = np.random.default_rng(len(tokens)).normal(size=(len(tokens), self.vocab_size)).astype(self.dtype)
        return np.asfortranarray(scores)


class Demanding(Engine):
    name = "demanding"

    def __init__(self, *, checkpoint_format, device="cpu"):
        raise OSError("no such device")


class Nameless(Engine):
    pass


class Mistyped(Engine):
    name = "mistyped"
    precision = "float32"


class NotAnEngine:
    pass


class WrongReturns(Engine):
    """Returns things of the wrong type; ``load`` by the option, the rest by the model."""

    name = "wrong"

    def __init__(self, load="model"):
        self.what = load

    def accepts(self, config):
        return 3

    def load(self, checkpoint, needs):
        model = WrongModel()
        if self.what == "zero":
            model.vocab_size = 0
        return None if self.what == "none" else model


class WrongModel(Model):
    vocab_size = V

    def score_batch(self, sequences):
        return [toy_scores(sequences[0])]

    def open(self):
        return "a session"

    def generate(self, requests):
        return None


def function():
    return Toy()


class Kernels(Engine):
    """Single operators: what was asked comes back in the numbers."""

    name = "kernels"

    def __init__(self, fault="none"):
        self.fault = fault

    def operators(self):
        if self.fault == "list":
            return ["attention"]
        if self.fault == "callable":
            return {"attention": self.attention}
        return {
            "flash": AttentionOperator(self.attention, masks=("none", "given"), head_dims=(4,), max_queries=9),
            "turn": RopeOperator(self.rope, layout="interleaved"),
            "norm": RMSNormOperator(self.norm, hidden_sizes=(4, 300)),
        }

    def attention(self, q, k, v, causal, visible):
        if self.fault == "shape":
            return q[0]
        if self.fault == "integers":
            return q.astype(int)
        if k.shape[1] == 3:
            raise Refused("3 keys")
        seen = 0 if visible is None else visible.sum()
        return q + k.sum() + 2 * v.sum() + 100 * causal + 1000 * seen

    def rope(self, x, positions, base):
        assert positions.dtype == np.int64
        return x + positions[None, :, None] + base

    def norm(self, x, weight, eps):
        return x * weight + eps
