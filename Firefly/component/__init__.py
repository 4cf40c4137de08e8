"""The parts of the trainer, one concern a file."""

import logging

# On a CPU bitsandbytes speaks, at import, of an optional kernel that nobody here needs.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
