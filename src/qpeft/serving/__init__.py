"""Serving models over HTTP in the form of OpenAI's API: adapters that do not merge too, several on one base."""

from qpeft.serving.app import build_app
from qpeft.serving.engine import Engine
from qpeft.serving.models import ServedModel, open_models
from qpeft.serving.server import Server

__all__ = ["Engine", "ServedModel", "Server", "build_app", "open_models"]
