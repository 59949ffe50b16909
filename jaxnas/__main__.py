"""`python -m jaxnas`."""

import sys

from jaxnas.cli import main

sys.exit(main())
