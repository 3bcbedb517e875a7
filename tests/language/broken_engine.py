"""The Python example with one fault on the wire: ``python broken_engine.py RULE``. Each breaks the rule of its name."""

import importlib.util
import json
import os
import sys
import time
from pathlib import Path

ORACLE = Path(__file__).parents[2] / "conformance" / "examples" / "oracle_engine.py"
_found = importlib.util.spec_from_file_location("oracle_engine", ORACLE)
oracle = sys.modules["oracle_engine"] = importlib.util.module_from_spec(_found)
_found.loader.exec_module(oracle)
Server, Refused, Violation = oracle.Server, oracle.Refused, oracle.Violation
FAULTS = {}


def fault(install):
    """Register what installs a fault, under the name of the rule that it breaks."""
    FAULTS[install.__name__.replace("_", "-")] = install
    return install


def replace(owner, name, make):
    """Put ``make(old)`` in the place of a function."""
    setattr(owner, name, make(getattr(owner, name)))


def results(call, change):
    """Change what a call gives."""
    replace(Server, f"_{call}", lambda old: lambda self, **given: change(old(self, **given)))


def wire(change):
    """Change the message of every reply: ``change(reply, line)``."""

    def make(old):
        def answer(self, line, read):
            first, *payload = old(self, line, read)
            return [json.dumps(change(json.loads(first), line)).encode() + b"\n", *payload]

        return answer

    replace(Server, "answer", make)


def kind_of(call, kind):
    """Give every error of a call another kind."""

    def change(reply, line):
        if "error" in reply and f'"{call}"'.encode() in line:
            reply["error"]["kind"] = kind
        return reply

    wire(change)


def parsing(parse):
    """Read lines another way."""
    replace(Server, "_parsed", lambda old: lambda self, line: parse(line, old, self))


@fault
def hello():
    results("hello", lambda given: {**given, "name": ""})


@fault
def hello_again():
    results("hello", lambda given: {**given, "version": str(time.monotonic_ns())})


@fault
def before_hello():
    replace(Server, "__init__", lambda old: lambda self, dtype: (old(self, dtype), setattr(self, "greeted", True))[0])


@fault
def ids():
    wire(lambda reply, line: {**reply, "id": reply["id"] and reply["id"] & 0x7FFFFFFF})


@fault
def one_reply():
    replace(
        Server, "answer", lambda old: lambda self, line, read: [*old(self, line, read), b"done" * (b"score" in line)]
    )


@fault
def not_json():
    wire(lambda reply, line: {**reply, "id": 0 if reply["id"] is None else reply["id"]})


@fault
def not_utf8():
    parsing(lambda line, old, self: old(self, line.decode("utf-8", "replace").encode()))


@fault
def bare_words():
    parsing(lambda line, old, self: json.loads(line) if b"NaN" in line else old(self, line))


@fault
def spelling():
    parsing(lambda line, old, self: old(self, line.replace(b"\\u0063", b"?")))


@fault
def unknown_call():
    kind_of("no-such-call", "raised")


@fault
def envelope():
    def parse(line, old, self):
        message = old(self, line)
        return {"id": 1, **message} if isinstance(message, dict) else message

    parsing(parse)


@fault
def fields_missing():
    replace(
        oracle, "checked", lambda old: lambda value, needed, other, where: old(value, {}, {**needed, **other}, where)
    )


@fault
def fields_unknown():
    def make(old):
        def checked(value, needed, other, where):
            known = {**needed, **other}
            sound = isinstance(value, dict) and where == "arguments"
            return old({k: v for k, v in value.items() if k in known} if sound else value, needed, other, where)

        return checked

    replace(oracle, "checked", make)


@fault
def fields_typed():
    for call, (needed, other) in oracle.CALLS.items():
        loose = {
            name: (lambda value: isinstance(value, int)) if test is oracle.whole else test
            for name, test in needed.items()
        }
        oracle.CALLS[call] = loose, other


@fault
def not_offered():
    kind_of("operators", "protocol")


@fault
def accepts():
    results("accepts", lambda given: {"reason": None})


@fault
def load():
    results("load", lambda given: {**given, "vocab_size": given["vocab_size"] + 3})


@fault
def load_nothing():
    kind_of("load", "raised")


@fault
def load_without_needs():
    def make(old):
        def _load(self, checkpoint, needs):
            if "max_tokens" not in needs:
                raise Violation("max_tokens is needed")
            return old(self, checkpoint, needs)

        return _load

    replace(Server, "_load", make)


@fault
def handles():
    replace(
        Server,
        "_load",
        lambda old: lambda self, **given: (setattr(self, "last", len(self.models)), old(self, **given))[1],
    )


@fault
def closed_model():
    replace(
        Server,
        "_close",
        lambda old: lambda self, **given: {} if given.get("model") in self.models else old(self, **given),
    )


@fault
def unknown_handle():
    kind_of("score", "refused")


@fault
def close_one():
    replace(Server, "_close", lambda old: lambda self, **given: old(self, **given) if given else {})


@fault
def scores():
    replace(
        oracle.Model, "forward", lambda old: lambda self, *given: (old(self, *given)[0][:, :-1], old(self, *given)[1])
    )


@fault
def byte_order():
    replace(oracle, "encode", lambda old: lambda array, payload: old(array.byteswap(), payload))


@fault
def rows_and_columns():
    replace(
        Server,
        "_part",
        lambda old: lambda self, scores, rows=None, columns=None: old(self, scores, rows and sorted(rows), columns),
    )


@fault
def rows_beyond():
    kind_of("rows", "refused")


@fault
def refused_tokens():
    replace(
        oracle.Model, "check", lambda old: lambda self, tokens, held=0: [t % self.config.vocab_size for t in tokens]
    )


@fault
def batch():
    results("score_batch", lambda given: {"scores": given["scores"][:1]})


@fault
def completions():
    results("generate", lambda given: {"completions": given["completions"][:2]})


@fault
def fields_off():
    def make(old):
        def continued(model, request, row, cache, rng):
            return old(model, request, -row if "top_k" in request else row, cache, rng)

        return continued

    replace(oracle, "_continued", make)


@fault
def logprobs():
    replace(oracle, "_top", lambda old: lambda row, n: old(row, n - 1))


@fault
def streamed():
    results(
        "generate",
        lambda given: {
            "completions": [
                {**one, "pieces": one["pieces"][:-1]} if "pieces" in one else one for one in given["completions"]
            ]
        },
    )


@fault
def refused_requests():
    kind_of("prompt", "raised")


@fault
def chunks():
    replace(
        oracle.Session,
        "extend",
        lambda old: lambda self, tokens: (setattr(self, "cache", self.model.empty()), old(self, tokens))[1],
    )


@fault
def chunk_parts():
    def make(old):
        def _extend(self, session, tokens, **part):
            return {"scores": self._part(self._session(session).extend(tokens), **part)}

        return _extend

    replace(Server, "_extend", make)


@fault
def refused_chunks():
    def make(old):
        def extend(self, tokens):
            if len(tokens) > 1 and not 0 <= tokens[1] < 11:
                old(self, tokens[:1])
            return old(self, tokens)

        return extend

    replace(oracle.Session, "extend", make)


@fault
def forks():
    def make(old):
        def _fork(self, session):
            return self._opened(self._session(session))

        return _fork

    replace(Server, "_fork", make)


@fault
def truncation():
    replace(oracle.Session, "truncate", lambda old: lambda self, length: old(self, max(0, min(length, self.length))))


@fault
def bytes_of_the_cache():
    results("cache_bytes", lambda given: {"cache_bytes": 0})


@fault
def closed_session():
    replace(Server, "_close", lambda old: lambda self, **given: {} if "session" in given else old(self, **given))


@fault
def replies():
    wire(lambda reply, line: {**reply, "seconds": 0.5})


@fault
def bye():
    results("bye", lambda given: time.sleep(60))


@fault
def end_of_input():
    pass  # see main


@fault
def end_within_a_message():
    def make(old):
        def answer(self, line, read):
            if not line.endswith(b"\n"):
                time.sleep(60)
            return old(self, line, read)

        return answer

    replace(Server, "answer", make)


@fault
def announced_bytes():
    replace(Server, "answer", lambda old: lambda self, line, read: old(self, line, bytes))


@fault
def long_line():
    pass  # these three read their input in another way, see lines


@fault
def pieces():
    pass


@fault
def together():
    pass


def lines(name):
    """Lines of the input, as a careless reader finds them."""
    while True:
        if name == "long-line":
            line = sys.stdin.buffer.readline(1 << 16)
        elif name in ("pieces", "together"):
            line = os.read(0, 1 << 21)
            line = line.partition(b"\n")[0] + b"\n" if name == "together" and line else line
        else:
            line = sys.stdin.buffer.readline()
        if not line:
            return
        yield line


def main(name):
    if name != "none":
        FAULTS[name]()
    server = Server("float64")
    for line in lines(name):
        for part in server.answer(line, sys.stdin.buffer.read):
            sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()
        if server.finished:
            return
    if name == "end-of-input":
        time.sleep(60)


if __name__ == "__main__":
    main(sys.argv[1])
