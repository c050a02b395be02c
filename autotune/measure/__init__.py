"""How candidates become measurements: worker processes, and the replay of recorded ones."""
