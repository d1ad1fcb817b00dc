"""Generators of the kinds that people bring, each small: those that work, and those that are told what to do."""
