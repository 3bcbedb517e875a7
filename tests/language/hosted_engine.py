"""The Python example behind an adapter: the same answers, by way of our own host of adapters."""

from dataclasses import asdict

from broken_engine import oracle

from lmconform.adapter import Choices, Completion, Engine, Model, NotOffered, Precision, Refused, Session

oracle.Refused, oracle.NotOffered = Refused, NotOffered


class HostedSession(Session):
    def __init__(self, session):
        self.session = session

    def extend(self, tokens):
        return self.session.extend(tokens)

    def fork(self):
        return HostedSession(oracle.Session(self.session.model, 0, self.session.cache))

    def truncate(self, length):
        self.session.truncate(length)

    def cache_bytes(self):
        return self.session.cache_bytes()


class HostedModel(Model):
    def __init__(self, model):
        self.model, self.vocab_size = model, model.config.vocab_size

    def score(self, tokens):
        return self.model.forward(self.model.check(tokens), self.model.empty())[0]

    def score_batch(self, sequences):
        return [self.score(tokens) for tokens in sequences]

    def open(self):
        return HostedSession(oracle.Session(self.model, 0))

    def generate(self, requests):
        return [self.completion(one) for request in requests for one in oracle.completions(self.model, plain(request))]

    def completion(self, one):
        steps = one.pop("logprobs", None)
        return Completion(**one, logprobs=None if steps is None else tuple(map(dict, steps)))


class Hosted(Engine):
    name = "hosted"
    precision = Precision("float64", "float64", "float64", "float64", "float64")
    choices = Choices(empty_prompt="refused")

    def accepts(self, config):
        try:
            oracle.read_config(config)
        except Refused as reason:
            return str(reason)
        return None

    def load(self, checkpoint, needs):
        return HostedModel(oracle.Model(checkpoint, "float64"))


def plain(request):
    given = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(request).items()}
    return given | {"stop_sequences": list(map(list, request.stop_sequences))}
