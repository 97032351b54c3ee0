"""`python -m cellfuse` is `cellfuse`."""

import sys

from cellfuse.cli import main

sys.exit(main())
