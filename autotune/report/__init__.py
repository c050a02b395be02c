"""A page about a study: what it is made of, how it is drawn, how it becomes a file.

Knows neither kind: ``kernels/report/page.py`` and ``serving/report/page.py`` say what theirs show.
"""
