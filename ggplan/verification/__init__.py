"""Is a GGUF file whole, sound, what its manifest says, and how far is it from its source?"""

from ggplan.verification.exactness import plan_again
from ggplan.verification.faults import HEADER, Fault
from ggplan.verification.verifying import Verification, verify

__all__ = ["HEADER", "Fault", "Verification", "plan_again", "verify"]
