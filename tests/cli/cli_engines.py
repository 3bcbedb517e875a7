"""Adapters for the tests of the command line: the spec's oracle as an engine, and the same with one fault."""

from __future__ import annotations

import numpy as np

from lmconform.adapter import Choices, Completion, Engine, Model, Precision, Refused, Session
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
        return [self._continue(request) for request in requests]

    def _continue(self, request):
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
    model_class = OracleModel

    def load(self, checkpoint, needs):
        return self.model_class(self, checkpoint, needs)
