"""``--launcher url``: a server that runs already is measured as it is."""
