"""A page about a study: what it is made of, how it is drawn, how it becomes a file.

Knows neither half: ``moe/page.py`` and ``spec/page.py`` say what their studies show.
"""
