"""The policy enforcement point: the only gate between the node and other organizations, both ways."""

from comity_node.admission.gate import Gate, Question

__all__ = ["Gate", "Question"]
