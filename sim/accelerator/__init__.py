"""Workloads on an accelerator: hardware, mapping, cost, whole generations, comparisons."""
