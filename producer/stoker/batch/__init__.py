"""Offline files: requests as lines in, answers as lines out, resumable. RQ runs them; see `docs/batch.md`."""
