"""Adapters for the tests of the command line: the spec's oracle as an engine, and the same with one fault."""

import ctypes
import math
import os
import sys
import time
from pathlib import Path

import numpy as np

from lmconform.adapter import Choices, Completion, Engine, Model, NotOffered, Precision, Refused, Session
from lmconform.engines.common import check_tokens, top_logprobs
from lmconform.spec.decoder import decoder, read_checkpoint


class OracleSession(Session):
    def __init__(self, model):
        self.model, self.tokens = model, []

    def extend(self, tokens):
        self.tokens += check_tokens(tokens, self.model.vocab_size)
        return self.model.run(self.tokens)[-len(tokens) :]


class OracleModel(Model):
    def __init__(self, engine, checkpoint, needs):
        self.engine, self.needs = engine, needs
        try:
            self.config, self.weights = read_checkpoint(checkpoint)
        except (OSError, ValueError) as error:
            raise Refused(str(error)) from error
        self.vocab_size = self.config.vocab_size

    def run(self, tokens):
        return decoder(self.config, self.weights, check_tokens(tokens, self.vocab_size))

    def score(self, tokens):
        return self.run(tokens)

    def score_batch(self, sequences):
        return [self.run(tokens) for tokens in sequences]

    def open(self):
        return OracleSession(self)

    def generate(self, requests):
        return [self.continued(request) for request in requests]

    def continued(self, request):
        tokens, steps = list(request.prompt), []
        for _ in range(request.max_new_tokens):
            row = self.run(tokens)[-1]
            steps.append(row - row.max() - np.log(np.exp(row - row.max()).sum()))
            tokens.append(int(row.argmax()))
        found = None if request.logprobs is None else tuple(top_logprobs(step, request.logprobs) for step in steps)
        return Completion(tuple(tokens[len(request.prompt) :]), "length", logprobs=found)


class Oracle(Engine):
    """A right engine: what the page ``decoder`` computes, in float64."""

    name = "oracle"
    version = "1"
    precision = Precision("float64", "float64", "float64", "float64", "float64")
    choices = Choices(scores="logits", logprobs="raw", empty_prompt="refused")

    def load(self, checkpoint, needs):
        return OracleModel(self, checkpoint, needs)


def put(value):
    def change(scores):
        scores = scores.copy()
        scores[-1, 3] = value
        return scores

    return change


def top_k(scores):
    lowest = np.sort(scores, axis=1)[:, -50, None]
    return np.where(scores < lowest, -np.inf, scores)


SCORES = {
    "columns": lambda scores: scores[:, :-1],
    "batch-axis": lambda scores: scores[None],
    "integers": lambda scores: scores.astype(np.int64),
    "strings": lambda scores: scores.astype(str),
    "objects": lambda scores: scores.astype(object),
    "list": lambda scores: scores.tolist(),
    "nothing": lambda scores: None,
    "nan": put(np.nan),
    "inf": put(np.inf),
    "late": lambda scores: np.roll(scores, 1, axis=0),
    "early": lambda scores: np.roll(scores, -1, axis=0),
    "top-k": top_k,
    "banned": put(-np.inf),
}
"""What the option ``fault`` does to the scores of ``score``."""


def hang():
    time.sleep(300)


def give_up():
    sys.exit("gave up")


def talk():
    print("noise from Python")
    os.write(1, b"noise from C\n")


def refuse():
    raise Refused("lone tokens are not served on Tuesdays")


EVENTS = {
    "exit": lambda: os._exit(3),
    "segfault": lambda: ctypes.string_at(0),
    "hang": hang,
    "give-up": give_up,
    "print": talk,
    "refuse": refuse,
}
"""What the option ``fault`` does when ``score`` gets a lone token other than 0, which CM-9 sends and CM-2 does not.

With the option ``once`` it does so one time; the file of that name then holds the process id.
"""


PADDED_NAN = {"padded-nan": 0, "long-padded-nan": 20}
"""Faults that give a padded row NaN, and the length that the batch must exceed for it."""


class Faulty(Oracle):
    """The oracle with the fault that the option names."""

    def __init__(self, fault="none", once=""):
        self.fault, self.once = fault, once

    def load(self, checkpoint, needs):
        if self.fault == "load-raises":
            return {}["model.embed_tokens.weight"]
        if self.fault == "load-refuses":
            raise Refused("head_dim 32 is not offered")
        if self.fault == "load-lacks":
            raise NotOffered("load")
        if self.fault == "load-dies":
            os._exit(7)
        if self.fault == "load-refuses-most" and "tape" not in Path(checkpoint).name:
            raise Refused("only tapes")
        return FaultyModel(self, checkpoint, needs)

    def accepts(self, config):
        if self.fault == "accepts-raises":
            raise RuntimeError("accepts is broken")
        if self.fault == "accepts-dies":
            os._exit(9)
        if self.fault == "accepts-refuses":
            raise Refused("only head_dim 64")
        return "only head_dim 64" if self.fault == "accepts-nothing" else None

    def regimes(self):
        return ["paged"] if self.fault == "regimes" else {}


class FaultyModel(OracleModel):
    def __init__(self, engine, checkpoint, needs):
        super().__init__(engine, checkpoint, needs)
        if engine.fault == "wide":
            self.vocab_size += 31

    def run(self, tokens):
        if self.engine.fault == "wide":
            return np.pad(super().run(tokens), ((0, 0), (0, 31)))
        return super().run(tokens)

    def score(self, tokens):
        fault = self.engine.fault
        if fault == "empty" and not tokens:
            return np.zeros((0, self.vocab_size))
        if fault == "bos":
            return self.run([0, *tokens])[:-1]
        if fault == "hidden-bos":
            return self.run([4, *tokens])[1:]
        if fault == "refuses-odd" and len(tokens) > 16 and len(tokens) % 2:
            raise Refused("long odd lengths are not served")
        if fault in EVENTS and len(tokens) == 1 and tokens[0]:
            self.perhaps(EVENTS[fault])
        return SCORES.get(fault, lambda scores: scores)(self.run(tokens))

    def perhaps(self, event):
        if self.engine.once:
            if Path(self.engine.once).exists():
                return
            Path(self.engine.once).write_text(str(os.getpid()))
        event()

    def score_batch(self, sequences):
        scores = super().score_batch(sequences)
        longest = max(map(len, sequences))
        if longest > PADDED_NAN.get(self.engine.fault, math.inf):
            for one in scores:
                one[0] = np.nan if len(one) < longest else one[0]
        return scores

    def generate(self, requests):
        done = super().generate(requests)
        if self.engine.fault == "id-out-of-range":
            return [Completion((self.vocab_size + 3,), "length", logprobs=one.logprobs) for one in done]
        if self.engine.fault == "few-logprobs":
            return [self.cut(one) for one in done]
        if self.engine.fault == "padded-nan" and len({len(request.prompt) for request in requests}) > 1:
            nan = [tuple(dict.fromkeys(step, np.nan) for step in one.logprobs) for one in done]
            return [Completion(one.tokens, logprobs=steps) for one, steps in zip(done, nan, strict=True)]
        return done

    def cut(self, one):
        steps = one.logprobs and tuple(dict(list(step.items())[:20]) for step in one.logprobs)
        return Completion(one.tokens, one.finish_reason, logprobs=steps)


class Dear(Oracle):
    """Cannot be constructed."""

    def __init__(self, device="cpu", dtype="float32"):
        raise RuntimeError(f"there is no device {device}")


class NotAnEngine:
    pass
