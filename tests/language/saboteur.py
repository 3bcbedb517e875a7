"""Stands between the suite and an engine: ``python saboteur.py MODE FLAG ENGINE...``.

It hands on all messages. While the file FLAG is there, the next reply to ``score`` is spoilt as MODE says, once.
"""

import json
import os
import subprocess
import sys
from pathlib import Path


def main(mode, flag, *engine):
    process = subprocess.Popen(engine, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    for request in sys.stdin.buffer:
        process.stdin.write(request)
        process.stdin.flush()
        line = process.stdout.readline()
        reply = line + process.stdout.read(json.loads(line).get("bytes", 0))
        if json.loads(request)["call"] == "score" and Path(flag).exists():
            Path(flag).unlink()
            if mode == "garbage":
                reply = b"Loading weights: 100%\n" + reply
            else:
                sys.stdout.buffer.write(reply[: len(reply) // 2])
                sys.stdout.buffer.flush()
                process.kill()
                os._exit(4)
        sys.stdout.buffer.write(reply)
        sys.stdout.buffer.flush()
    process.stdin.close()
    process.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
