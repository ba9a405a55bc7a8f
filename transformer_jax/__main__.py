"""`python -m transformer_jax` is `transformer-jax`."""

import sys

from transformer_jax.cli.main import main

sys.exit(main())
