"""Search spaces: one file each, found by its name in params.yaml (`space.name`)."""
