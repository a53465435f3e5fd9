"""Whether a sampler, anybody's, is right: exact problems, and what it gets wrong first."""

from fastscore.conformance.check import check
from fastscore.conformance.problem import Network
from fastscore.conformance.report import Finding, Report

__all__ = ["Finding", "Network", "Report", "check"]
