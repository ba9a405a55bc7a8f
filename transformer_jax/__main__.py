"""Run the command line: `python -m transformer_jax` is the same as `transformer-jax`."""

import sys

from transformer_jax.cli import main

sys.exit(main())
