"""Lockstep: the m paths of a strictly fair round advance together, as one graph of constant shape (method sec. 2)."""
