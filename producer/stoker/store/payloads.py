"""Payloads on their way into a worker: what the requests of one client share is checked once, the rest of each."""

from __future__ import annotations

from typing import Any

from stoker.config import LARGEST_PAYLOAD, check_name
from stoker.request import InferenceRequest, checked_request, field_values
from stoker.store.codec import HEADER_FIELDS, STAMP, Payload, decode_payload
from stoker.store.pack import pack, token_array

MOST_FORMS = 256
"""Forms that are remembered, before all are forgotten."""
FORM_BYTES = 512
"""The longest form that is remembered, in bytes behind the prompt."""

_NAME = pack("prompt_tokens")
_NAMED = 2 + len(_NAME)  # behind the first byte of the array, and that of the map
_WIDTHS = {0xC4: 1, 0xC5: 2, 0xC6: 4}  # msgpack's three kinds of bytes, by how many say their length


class Payloads:
    """Decodes as `decode_payload` does, and remembers the forms of what it found good.

    A form is all that can differ between two requests besides their ids, nonces, times and token ids, as it came, byte
    for byte. So nothing is trusted: whatever is not known to be good is decoded and checked whole.
    """

    def __init__(self) -> None:
        """Know no form yet."""
        self._known: dict[tuple[bytes, ...], tuple[Any, ...]] = {}

    def decode(self, request_id: str, data: bytes, attempt: int, most_bytes: int = LARGEST_PAYLOAD) -> Payload:
        """Return what a client submitted; raises what `decode_payload` raises."""
        header = data.split(b"|", HEADER_FIELDS)
        parts = _parted(header[-1]) if len(header) > HEADER_FIELDS and len(header[-1]) <= most_bytes else None
        if parts is None:
            return decode_payload(request_id, data, attempt, most_bytes)
        start, packed, rest = parts
        stamped, _, _, priority, tenant, timeout, _, tail, _, _, stream, *_ = header
        form = (stamped[STAMP:], priority, tenant, timeout, tail[-1:], stream, start, rest)
        values = self._known.get(form)
        try:
            accepted = int(stamped[:STAMP])
            nonce = data[STAMP : len(data) - len(header[-1])].decode().split("|", 2)[1]
        except ValueError:
            values = None
        if values is None or len(packed) < 2:
            payload = decode_payload(request_id, data, attempt, most_bytes)
            self._learn(form, rest, payload.request)
            return payload
        token_ids = token_array(packed).tolist()
        request = checked_request(check_name("request_id", request_id), token_ids, *values)
        return Payload(request_id, nonce, request.stream, accepted, attempt, request)

    def _learn(self, form: tuple[bytes, ...], rest: bytes, request: InferenceRequest) -> None:
        # Metadata are a request's own, and a name that comes twice would count for what comes last.
        if request.metadata is not None or len(rest) > FORM_BYTES or _NAME in rest:
            return
        if len(self._known) >= MOST_FORMS:
            self._known.clear()
        self._known[form] = field_values(request)[2:]


def _parted(body: bytes) -> tuple[bytes, bytes, bytes] | None:
    """Return what comes before, in and behind a prompt of token ids that a request begins with; None for no such."""
    width = _WIDTHS.get(body[_NAMED]) if len(body) > _NAMED and body[2:_NAMED] == _NAME else None
    if width is None:
        return None
    begin = _NAMED + 1 + width
    end = begin + int.from_bytes(body[_NAMED + 1 : begin], "big")
    # Of a prompt that is cut off nothing is left behind it, and no good payload ends with its prompt.
    return body[:2], body[begin:end], body[end:]
