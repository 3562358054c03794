"""A mosec server whose model does nothing, in batches of up to 64, speaking msgpack."""

import os
from typing import Any

from drive import answer
from mosec import Server, Worker
from mosec.mixin import MsgpackMixin


class Model(MsgpackMixin, Worker):
    """Answers a batch."""

    def forward(self, data: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Answer each."""
        return [{"tokens": answer(one["prompt"], one["max_tokens"])} for one in data]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Model, num=int(os.environ["PEER_WORKERS"]), max_batch_size=64, max_wait_time=2)
    server.run()
