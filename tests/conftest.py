"""What every test relies on."""

from __future__ import annotations

import signal

# A shell that starts us in the background has SIGINT ignored, and children inherit that: the tests
# that press Ctrl-C would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
