"""An OpenAI-compatible endpoint on this machine that is explicitly not a language model.

It fits a ridge regression to the demonstrations that it reads out of the prompt, and answers with its predictions. So the whole path from
prompt to table runs without a key, and a language model has a bar to beat. It answers to the name `MODEL` only, refuses prompts it cannot
read, and reports no token usage. Every table that shows it says what it is.
"""

from __future__ import annotations

import json
import re
import sys
import threading
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from llmpp_core.llm.settings import FREE, Settings
from llmpp_core.space.architecture import HAT_NAMES, Architecture
from llmpp_core.space.features import CostFeatures, DepthFeatures, HATFeatures

#: The only model there is.
MODEL = "not-an-llm/incontext-ridge-v1"
_ALPHAS = np.logspace(-2, 3, 26)
_SECTION = re.compile(r"(?:\A|\n\n)(?P<kind>Example|Test architecture)(?: (?P<number>\d+))?\n(?P<lines>.*?)(?=\n\n|\Z)", re.DOTALL)
# scikit-learn swaps the warning filters of the whole process while it works; threads that do so at once leave the process without any.
_ONE_AT_A_TIME = threading.Lock()


class PromptError(ValueError):
    """The prompt is not of the kind that `llmpp_core.llm.prompts` writes."""


def answer_prompt(text: str, as_json: bool = False) -> str:
    """Answer a prompt of `build_prompt`, with a JSON object if so wanted, as a model would that is fitted to its demonstrations.

    Raises PromptError if no demonstrations or no test architectures can be read.
    """
    demonstrations, queries, decimals = _read_prompt(text)
    with _ONE_AT_A_TIME:
        predicted = _fit(tuple(demonstrations))(list(queries.values()))
    values = {number: f"{value:.{decimals}f}" for number, value in zip(queries, predicted, strict=True)}
    if as_json:
        return json.dumps({number: float(value) for number, value in values.items()})
    return values[""] if list(queries) == [""] else "\n".join(f"{number}: {value}" for number, value in values.items())


def _read_prompt(text: str) -> tuple[list[tuple[Any, float]], dict[str, Any], int]:
    """Return demonstrations, test architectures by their numbers ("" for a single one), and the decimals of scores."""
    demonstrations: list[tuple[Any, float]] = []
    queries: dict[str, Any] = {}
    decimals = 0
    for match in _SECTION.finditer(text):
        lines = match["lines"].strip().splitlines()
        try:
            if match["kind"] == "Example":
                score = lines.pop().rpartition(":")[2].strip()
                demonstrations.append((_described(lines), float(score)))
                decimals = len(score.partition(".")[2])
            else:
                # A single one ends with the name of the score, which is to be written behind it.
                queries[match["number"] or ""] = _described([line for line in lines if not line.endswith(":")])
        except (ValueError, IndexError) as error:
            raise PromptError(f"{match['kind']} {match['number'] or ''}: {error}") from None
    if not demonstrations or not queries:
        raise PromptError(f"expected demonstrations and test architectures, got {len(demonstrations)} and {len(queries)}")
    return demonstrations, queries, decimals


def _described(lines: list[str]) -> Any:
    """Return HAT's architecture or, of another network, (name, value as JSON) of all lines between heading and score."""
    if lines[0].partition(":")[0] in HAT_NAMES:
        return Architecture.from_prompt_lines(lines[: len(HAT_NAMES)])
    named = [line.partition(": ") for line in lines]
    if len({name for name, _, _ in named}) < len(lines) or not all(colon for _, colon, _ in named):
        raise ValueError(f"expected different lines 'name: value', got {lines}")
    return tuple((name, json.dumps(json.loads(value))) for name, _, value in named)


@lru_cache(maxsize=256)
def _fit(demonstrations: tuple[tuple[Any, float], ...]) -> Any:
    """Return a function from architectures to predictions: a ridge whose penalty minimises the leave-one-out error."""
    archs, scores = [arch for arch, _ in demonstrations], np.array([score for _, score in demonstrations])
    if len(set(archs)) < 3:
        return lambda queries: np.full(len(queries), scores.mean())
    hat = all(isinstance(arch, Architecture) for arch in archs)
    # The width of attention, which prompts do not tell, is that of the paper.
    features = make_union(HATFeatures(), CostFeatures(qkv_dim=512), DepthFeatures(log=True)) if hat else FunctionTransformer(_numbers)
    vectors = () if hat else (DictVectorizer(sparse=False),)
    fitted = make_pipeline(features, *vectors, StandardScaler(), RidgeCV(alphas=_ALPHAS)).fit(archs, scores)

    def predict(queries: list[Any]) -> np.ndarray:
        if any(isinstance(query, Architecture) != hat for query in queries):
            raise PromptError("test architectures have other hyperparameters than the examples")
        return fitted.predict(queries)

    return predict


def _numbers(archs: list[Any]) -> list[dict[str, float]]:
    """Return features of networks of any kind: numbers, means and lengths of lists, and shares of texts."""
    rows = []
    for arch in archs:
        row: dict[str, float] = {}
        for name, value in arch:
            given = json.loads(value)
            listed = given if isinstance(given, list) else [given]
            numbers = [float(v) for v in listed if isinstance(v, (int, float))]
            if numbers:
                row[name] = sum(numbers) / len(numbers)
            if isinstance(given, list):
                row[f"length of {name}"] = len(given)
            for text in listed:
                if isinstance(text, str):
                    row[f"{name}={text}"] = row.get(f"{name}={text}", 0.0) + 1 / len(listed)
        rows.append(row)
    return rows


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and body leave in one packet; two would wait for each other's acknowledgement.
    wbufsize = -1

    def do_POST(self) -> None:
        status, body = self._reply()
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _reply(self) -> tuple[int, dict[str, Any]]:
        try:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
            model, text = body["model"], "\n\n".join(message["content"] for message in body["messages"])
        except (ValueError, KeyError, TypeError):
            return _error(400, "expected a Chat Completions request with model and messages", "invalid_request")
        if self.path != "/v1/chat/completions":
            return _error(404, f"there is no {self.path} here", "not_found")
        if model != MODEL:
            return _error(404, f"there is no model {model!r} here, only {MODEL}, which is not a language model", "model_not_found")
        try:
            message = {"role": "assistant", "content": answer_prompt(text, as_json="response_format" in body)}
        except PromptError as error:
            return _error(400, str(error), "unreadable_prompt")
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        usage = dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), 0)
        return 200, {"id": "offline", "object": "chat.completion", "created": 0, "model": MODEL, "choices": choices, "usage": usage}

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: notebooks would show it."""


def _error(status: int, message: str, code: str) -> tuple[int, dict[str, Any]]:
    return status, {"error": {"message": message, "type": "invalid_request_error", "code": code}}


class _Server(ThreadingHTTPServer):
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Pass over a client that hangs up, which is no fault and would print a traceback into a notebook."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class OfflineEndpoint:
    """The endpoint as a context manager; serves from a thread of its own on a port of 127.0.0.1, any free one by default.

    >>> with OfflineEndpoint() as url:
    ...     settings = offline_settings(url)
    """

    def __init__(self, port: int = 0):
        self._server = _Server(("127.0.0.1", port), _Handler)

    def __enter__(self) -> str:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def offline_settings(url: str) -> Settings:
    """Return the settings that ask the endpoint at `url`; the port does not matter to cache and recordings."""
    return Settings(MODEL, base_url=url, endpoint="offline", key_variable=None, price=FREE)
