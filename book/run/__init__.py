"""Runs chapters: plan, key, cache, execute, report."""
