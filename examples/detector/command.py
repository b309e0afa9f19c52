"""Command lines: what a user can mend is one line and no traceback."""

import sys

from .records import DataError
from .train import Diverged


def command(run):
    """Runs it; a faulty file, a full disk and the like end it with their message."""
    try:
        run()
    except (DataError, Diverged, OSError) as error:
        sys.exit(f"error: {error}")
