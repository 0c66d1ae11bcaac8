"""What machine is this, how does it fare, and what can be done here?"""

from deploykit.measuring.environment.describing import describe
from deploykit.measuring.environment.findings import Row, doctor
from deploykit.measuring.environment.machine import Machine

__all__ = ["Machine", "Row", "describe", "doctor"]
