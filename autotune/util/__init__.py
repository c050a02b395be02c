"""Small tools without a subject: flags, YAML, locks, words, the stopwatch."""
