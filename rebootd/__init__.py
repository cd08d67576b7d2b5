"""rebootd: reboots a fleet of Linux machines safely, one rack at a time.

Rooms: ``core`` decides and is pure; ``store`` and ``consul`` keep and lock; ``coordinator``
leads; ``api`` listens; ``agent`` acts on one host; ``cli`` is what people type.
"""

__version__ = "0.1.0"
