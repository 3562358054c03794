"""A LitServe server whose model does nothing, in batches of up to 64."""

import os
from typing import Any
from urllib.parse import urlsplit

import litserve
from drive import answer


class Model(litserve.LitAPI):
    """Answers a batch."""

    def setup(self, device: str) -> None:
        """Load nothing."""

    def decode_request(self, request: dict[str, Any]) -> dict[str, Any]:
        """Take the body as it is."""
        return request

    def batch(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Leave a batch as it is."""
        return inputs

    def predict(self, inputs: list[dict[str, Any]]) -> list[list[int]]:
        """Answer each."""
        return [answer(one["prompt"], one["max_tokens"]) for one in inputs]

    def unbatch(self, outputs: list[list[int]]) -> list[list[int]]:
        """Leave a batch as it is."""
        return outputs

    def encode_response(self, output: list[int]) -> dict[str, Any]:
        """Name the tokens."""
        return {"tokens": output}


if __name__ == "__main__":
    server = litserve.LitServer(
        Model(max_batch_size=64, batch_timeout=0.002),
        accelerator="cpu",
        workers_per_device=int(os.environ["PEER_WORKERS"]),
    )
    port = urlsplit(os.environ["PEER_URL"]).port
    server.run(host="127.0.0.1", port=port, log_level="error", num_api_servers=1, generate_client_file=False)
