"""Runtimes that run the graphs of a bundle: one file each, listed in registry.py."""
