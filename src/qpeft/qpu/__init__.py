"""Circuits on quantum computers: one protocol for all providers, a broker that loses nothing, mitigation."""
