"""The contenders of ``circuit_kernel.py``: adapters, environments, worker processes, and the slow reference."""
