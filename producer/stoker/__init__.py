"""Stoker keeps GPUs fed: a Redis-backed distributed job queue for model inference."""

from __future__ import annotations
