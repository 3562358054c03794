"""Runs models: the supervised worker process for each device, and the engines it can drive."""
