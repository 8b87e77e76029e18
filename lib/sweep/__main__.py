"""`python -m lib.sweep`."""

from lib.sweep.breaks import leave
from lib.sweep.command import main

leave(main())
