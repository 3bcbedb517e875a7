"""An adapter's host with one fault in how it treats operators: ``python broken_host.py RULE``."""

import json
import sys

import fuzz_engine

from lmconform.transport.dispatch import Dispatcher

FAULTS = ("kernels", "array-tags", "unknown-operator")


class Small(fuzz_engine.Small):
    def norm(self, x, weight, eps):
        return super().norm(x, weight, eps)[:1]


def main(name):
    dispatcher = Dispatcher(Small if name == "kernels" else fuzz_engine.Small)
    for line in sys.stdin.buffer:
        if name == "array-tags":
            line = line.replace(b">f4", b"float32")  # as if the order of its bytes did not matter
        first, *payload = dispatcher.answer(line, sys.stdin.buffer.read)
        reply = json.loads(first)
        if name == "unknown-operator" and "no such operator" in reply.get("error", {}).get("message", ""):
            reply["error"]["kind"] = "refused"
        sys.stdout.buffer.write(b"".join([json.dumps(reply).encode(), b"\n", *payload]))
        sys.stdout.buffer.flush()
        if dispatcher.finished:
            return


if __name__ == "__main__":
    main(sys.argv[1])
