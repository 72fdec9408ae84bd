"""Verify GGUF files: structure, scales, checksums, errors against the source, and exactness of the bytes."""

from ggplan.verification.exactness import plan_again
from ggplan.verification.faults import HEADER, Fault
from ggplan.verification.verifying import Verification, verify

__all__ = ["HEADER", "Fault", "Verification", "plan_again", "verify"]
