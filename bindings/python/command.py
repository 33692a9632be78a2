#!/usr/bin/python3
"""The command q4 of the Debian package; pip makes its own from pyproject.toml."""
import sys

from q4.__main__ import main

sys.exit(main())
