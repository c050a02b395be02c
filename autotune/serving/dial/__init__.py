"""The dial: gamma of a running server is turned, so that one boot tells all of them."""
