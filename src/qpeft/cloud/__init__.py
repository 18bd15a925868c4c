"""The virtual Wukong as a service: Origin's wire protocol on this machine, with a queue and scripted faults."""

from qpeft.cloud.faults import Fault, FaultScript
from qpeft.cloud.server import CloudServer
from qpeft.cloud.service import VirtualCloud
from qpeft.cloud.tasks import TaskBook

__all__ = ["CloudServer", "Fault", "FaultScript", "TaskBook", "VirtualCloud"]
