"""The load on a server that serves: requests, timing, counters, repeats, and when to stop."""
