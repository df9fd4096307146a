"""Requests by HTTP; TLS is the node's. Needs a rule `http` in the pod's annotation akri-krustlet/network."""

from urllib.parse import urlsplit

from componentize_py_types import Err, Ok
from wit_world.imports import outgoing_handler
from wit_world.imports.streams import StreamError_Closed
from wit_world.imports.wasi_http_types import Fields, OutgoingBody, OutgoingRequest, RequestOptions
from wit_world.imports.wasi_http_types import Scheme_Http, Scheme_Https

# Longest wait for an answer in nanoseconds, and longest answer in bytes.
TIMEOUT = 5 * 10**9
MOST = 1 << 20


class Failed(Exception):
    """Why there is no answer."""


def get(url):
    """The status of what a server answers, and its text."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise Failed("it is no URL of http or https")
    request = OutgoingRequest(Fields())
    request.set_scheme(Scheme_Https() if parts.scheme == "https" else Scheme_Http())
    request.set_authority(parts.netloc)
    request.set_path_with_query((parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
    options = RequestOptions()
    for set_timeout in (options.set_connect_timeout, options.set_first_byte_timeout, options.set_between_bytes_timeout):
        set_timeout(TIMEOUT)
    OutgoingBody.finish(request.body(), None)
    try:
        future = outgoing_handler.handle(request, options)
        with future.subscribe() as answered:
            answered.block()
        response = future.get()
    except Err as error:
        raise Failed(type(error.value).__name__.removeprefix("ErrorCode_")) from None
    # An answer, in a result of the wait for it, in a result of its being asked for once.
    response = response.value if isinstance(response, Ok) else response
    if isinstance(response, Err):
        raise Failed(type(response.value).__name__.removeprefix("ErrorCode_"))
    response = response.value if isinstance(response, Ok) else response
    status = response.status()
    text = bytearray()
    with response.consume() as body:
        with body.stream() as stream:
            while True:
                try:
                    text += stream.blocking_read(64 << 10)
                except Err as error:
                    if isinstance(error.value, StreamError_Closed):
                        break
                    raise Failed("it broke off") from None
                if len(text) > MOST:
                    raise Failed(f"an answer of more than {MOST} bytes")
    return status, text.decode("utf-8", "replace")
