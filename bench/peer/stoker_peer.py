"""Stoker's SDK in bulk, results returned in order of arrival."""

import os

from drive import MAX_TOKENS, Answers, Prompts

from stoker import Client

CLIENT = Client(os.environ["PEER_URL"])


def ask(prompts: Prompts) -> Answers:
    """Map over all of them."""
    return [response.unwrap().token_ids for response in CLIENT.map(prompts, max_tokens=MAX_TOKENS)]
