"""The connection to an endpoint: of all that the environment holds, only the key that the settings name and proxies have a part in it.

The `openai` package would also send the organisation, the project and whatever headers are set for other endpoints, even another key.
"""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit

from llmpp_core.llm.limits import Stop
from llmpp_core.llm.settings import Settings


def read_key(settings: Settings) -> str:
    """Return the key, "" if none is needed; raises Stop if it is missing or impossible."""
    name = settings.key_variable
    key = os.environ.get(name, "").strip() if name else ""
    if name and not key and not settings.is_loopback:
        raise Stop(f"no key: set the environment variable {name}")
    # A stray line break would make the HTTP library quote the key in its complaint.
    if not all("!" <= character <= "~" for character in key):
        raise Stop(f"the key in the environment variable {name} holds white space or characters that no key has")
    return key


def connect(settings: Settings, key: str) -> Any:
    """Return an `openai.AsyncOpenAI` that sends no header but its own; raises Stop if a proxy of the environment cannot be used."""
    # Imported here: replaying recordings needs neither the package nor the second that importing it takes.
    import openai

    async def only_own_headers(request: Any) -> None:
        request.headers = type(request.headers)({
            "Host": request.url.netloc,
            "Authorization": f"Bearer {key or 'none'}",
            "Content-Type": "application/json",
            "Content-Length": str(len(request.content)),
            "Accept": "application/json",
            "Accept-Encoding": request.headers.get("Accept-Encoding", "identity"),
            # Some gateways turn away clients that they do not know.
            "User-Agent": f"OpenAI/Python {openai.__version__}",
            # By this the package knows that the response is wanted as it came.
            "X-Stainless-Raw-Response": "true",
        })  # fmt: skip

    try:
        http = openai.DefaultAsyncHttpxClient(
            # Of this machine, no proxy applies.
            trust_env=not settings.is_loopback,
            # A redirect means a wrong URL; following it could hand prompts, or the key, to another host.
            follow_redirects=False,
            # Loading certificates takes longer than asking a local server.
            verify=urlsplit(settings.base_url).scheme == "https",
            event_hooks={"request": [only_own_headers]},
        )
    except Exception as error:  # Each version of the HTTP package has its own; their messages may quote the password of a proxy.
        names = [name for name in os.environ if name.lower() in ("http_proxy", "https_proxy", "all_proxy") and os.environ[name]]
        if settings.is_loopback or not names:
            raise
        socks = any(os.environ[name].lower().startswith("socks") for name in names) and isinstance(error, ImportError)
        why = "SOCKS needs the package socksio" if socks else "expected http://, https:// or socks5://, host and port"
        raise Stop(f"the proxy in the environment variable {' or '.join(sorted(names))} cannot be used: {why}; or unset it") from None
    # Organisation and project are given, so that they are not looked up in the environment.
    mine: dict[str, Any] = {"api_key": key or "none", "organization": "", "project": "", "base_url": settings.base_url}
    return openai.AsyncOpenAI(**mine, max_retries=0, timeout=settings.deadline, http_client=http)
