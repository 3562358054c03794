"""Runs a whole stack on one machine: the embedded Redis, the local stack, and the checks of an installation."""
