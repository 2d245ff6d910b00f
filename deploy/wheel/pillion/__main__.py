"""`python -m pillion` is the command `pillion`."""

import sys

from pillion.cli import main

sys.exit(main())
