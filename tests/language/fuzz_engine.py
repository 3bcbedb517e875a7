"""A small adapter for fuzzing, hosted from this file too. It refuses what it cannot do, as a sound engine does."""

import numpy as np

from lmconform.adapter import (
    AttentionOperator,
    Completion,
    Engine,
    Model,
    Refused,
    RMSNormOperator,
    RopeOperator,
    Session,
)
from lmconform.engines.common import check_tokens

V, LIMIT = 11, 64


def scores(tokens):
    return np.zeros((len(tokens), V), np.float32)


class SmallSession(Session):
    def __init__(self, length=0):
        self.length = length

    def extend(self, tokens):
        self.length += len(check_tokens(tokens, V, held=self.length, limit=LIMIT))
        return scores(tokens)

    def fork(self):
        return SmallSession(self.length)

    def truncate(self, length):
        if not 0 <= length <= self.length:
            raise Refused("no such length")
        self.length = length

    def cache_bytes(self):
        return self.length


class SmallModel(Model):
    vocab_size, max_length = V, LIMIT

    def score(self, tokens):
        return scores(check_tokens(tokens, V, limit=LIMIT))

    def score_batch(self, sequences):
        return [self.score(tokens) for tokens in sequences]

    def open(self):
        return SmallSession()

    def generate(self, requests):
        done = []
        for request in requests:
            check_tokens(request.prompt, V, limit=LIMIT)
            if not 0 <= request.max_new_tokens <= LIMIT or not 1 <= request.n <= 8:
                raise Refused("too many tokens or completions")
            done += [Completion((1,) * request.max_new_tokens, "length")] * request.n
        return done


class Small(Engine):
    name = "small"

    def load(self, checkpoint, needs):
        return SmallModel()

    def operators(self):
        return {
            "flash": AttentionOperator(self.attention, masks=("none", "causal", "given")),
            "turn": RopeOperator(self.rope),
            "norm": RMSNormOperator(self.norm),
        }

    def attention(self, q, k, v, causal, visible):
        return self.same(q, q.ndim == 3 and k.shape == v.shape)

    def rope(self, x, positions, base):
        return self.same(x, x.ndim == 3 and len(positions) == x.shape[1])

    def norm(self, x, weight, eps):
        return self.same(x, x.ndim == 2 and weight.shape == x.shape[1:])

    def same(self, x, fits):
        if not fits:
            raise Refused("the shapes do not fit")
        return x.astype(np.float32)
