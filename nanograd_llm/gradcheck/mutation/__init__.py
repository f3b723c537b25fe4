"""Mistakes planted in rules, to score the tests that should notice them; the pytest plugin does it for a user."""
