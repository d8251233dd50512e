"""Adaptation of a vision backbone to dermoscopy."""

from .run import AdaptConfig, adapt

__all__ = ["AdaptConfig", "adapt"]
