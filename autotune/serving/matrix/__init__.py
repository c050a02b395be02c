"""Several targets with one drafter, compared."""
