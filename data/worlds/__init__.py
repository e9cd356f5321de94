"""Worlds: generators of data whose truth is known."""
