"""All that Stoker does in Redis: keys, scripts, what is read, and the bytes of requests and results."""
