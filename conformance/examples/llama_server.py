"""llama.cpp's own HTTP server from the wheel of xllamacpp, for ``lmconform check openai-http``; see its page.

    python llama_server.py MODEL.gguf PORT [SLOTS] [CACHE_TYPE]

Where a ``llama-server`` is installed, it does the same: ``llama-server -m MODEL.gguf --port PORT -fa off -ctk f32 -ctv
f32 -np 4 -c 4096``.
"""

import sys
import threading

import xllamacpp

TYPES = {"f32": "GGML_TYPE_F32", "f16": "GGML_TYPE_F16", "q8_0": "GGML_TYPE_Q8_0"}
CONTEXT = 1024


def main(model: str, port: str, slots: str = "4", cache: str = "f32") -> None:
    """Serve one model until the process is ended."""
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.hostnames = ["127.0.0.1"]
    params.port = int(port)
    params.n_parallel = int(slots)
    params.n_ctx = CONTEXT * int(slots)
    params.cpuparams.n_threads = 1
    params.warmup = False
    params.cache_type_k = params.cache_type_v = getattr(xllamacpp.ggml_type, TYPES[cache])
    if cache == "f32":
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
