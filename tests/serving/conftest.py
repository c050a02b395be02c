"""Fixtures that the tests of speculative decoding share."""

from __future__ import annotations

from tests.serving.tiny_models import tiny_models

__all__ = ["tiny_models"]
