"""The mathematics, once: pure functions ``f(ops, ...)`` that run in every framework."""
