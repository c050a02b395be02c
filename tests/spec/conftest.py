"""Fixtures that the tests of speculative decoding share."""

from __future__ import annotations

from tests.spec.tiny_models import tiny_models

__all__ = ["tiny_models"]
