"""Language models on one's own machine: how the servers of `LOCAL_SERVERS` are started, and whether one is there.

All of them speak Chat Completions and want neither key nor money. Each line gives the model a context that holds these prompts (about 3,000
tokens with ten demonstrations): the default of Ollama (num_ctx) and LM Studio can be shorter, and num_ctx cannot be set through Chat
Completions. llama-server divides its context by the number of slots, -np. LM Studio lists its models with ``lms ls``.

`serve` needs no other program: the extra ``local`` installs llama.cpp's server as a Python package, xllamacpp.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from llmpp_core.llm.settings import Settings

#: The commands that start the servers, by the names of `llmpp_core.llm.settings.LOCAL_SERVERS`.
START = {
    "llama-server": "llama-server -m MODEL.gguf -c 65536 -np 4, or llmpp serve-model MODEL.gguf",
    "vllm": "vllm serve MODEL --max-model-len 16384",
    "ollama": "OLLAMA_CONTEXT_LENGTH=16384 ollama serve",
    "lm-studio": "lms load MODEL --context-length 16384 && lms server start --port 1234",
    "transformers": "transformers serve FOLDER",
}
#: Seconds for one answer of a local server. On a laptop's processor the first prompt alone takes minutes, and others wait for their turn.
DEADLINE = 900.0


def serve(path: Path, port: int) -> Any:
    """Serve a GGUF file with llama.cpp's server on 127.0.0.1, from threads of its own, until this process ends or drops what is returned.

    Raises ValueError if the extra ``local`` is not installed or the file is no GGUF file, OSError if there is none or the port is in use.
    """
    try:
        import xllamacpp
    except ImportError:
        raise ValueError("the server of language models is not installed: pip install xllamacpp") from None
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{path} is no GGUF file")
    # The server itself would end the process.
    socket.create_server(("127.0.0.1", port)).close()
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.hostnames, parameters.port = ["127.0.0.1"], port
    parameters.n_ctx, parameters.n_parallel = 65536, 4  # As in the first line of `START`.
    # Threads that poll for work stand in each other's way where other programs compute too.
    parameters.cpuparams.poll = parameters.cpuparams_batch.poll = 0
    # Errors only: it would log every request, with parts of the prompts.
    parameters.verbosity = 1
    return xllamacpp.Server(parameters)


def require_server(settings: Settings, server: str) -> None:
    """Raise ConnectionError, naming the command that starts the server, if nothing listens at the address of some settings."""
    url = urlsplit(settings.base_url)
    try:
        socket.create_connection((url.hostname or "", url.port or (443 if url.scheme == "https" else 80)), timeout=5).close()
    except OSError as error:
        why = f"no {server} answers at {settings.base_url} ({error.strerror or error})"
        raise ConnectionError(f"{why}; start it with: {START[server]}") from None
