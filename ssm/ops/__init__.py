"""Pure functions on arrays: the API for users of any framework, or of none."""

from ssm.ops.linear_scan import linear_scan

__all__ = ["linear_scan"]
