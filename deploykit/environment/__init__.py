"""What machine is this, how does it fare, and what can be done here?"""

from deploykit.environment.describing import describe
from deploykit.environment.findings import Row, doctor
from deploykit.environment.machine import Machine

__all__ = ["Machine", "Row", "describe", "doctor"]
