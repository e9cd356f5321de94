"""Trains organisms from their recipes, measures them and writes their folders."""
