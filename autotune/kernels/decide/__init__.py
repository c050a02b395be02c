"""After the search: confirmation side by side, comparison of files, the nearest-key look-up."""
