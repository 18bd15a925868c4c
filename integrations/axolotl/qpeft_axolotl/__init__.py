"""`adapter: qtha` for axolotl: name `qpeft_axolotl.QTHAPlugin` under `plugins`."""

from qpeft_axolotl.plugin import QTHAPlugin

__all__ = ["QTHAPlugin"]
