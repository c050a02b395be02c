"""How results leave: files that are replaced whole, commits in a git checkout."""
