"""Supernet training strategies: one file each, found by the `strategy` of a block in params.yaml (`methods`)."""
