"""The service: a queue of commands, an HTTP interface, a page."""
