"""`python -m nanograd_llm` is `nanograd-llm`."""

import sys

from nanograd_llm.cli import main

sys.exit(main())
