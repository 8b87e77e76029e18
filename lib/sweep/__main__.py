"""`python -m lib.sweep`."""

import sys

from lib.sweep.command import main

sys.exit(main())
