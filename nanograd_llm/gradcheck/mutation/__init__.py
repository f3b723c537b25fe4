"""Mistakes are planted in backward rules, to find out which of them the tests notice.

Read `mutants` (ops), `backward_rules` (any function), then the pytest plugin.
"""
