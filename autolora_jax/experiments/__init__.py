"""The paper's experiments, and those its reviewers asked for: one command draws, scores and reports each.

experiment (what is compared) → batch (draws it) → scoring → results → tables, plots, sheets → report
"""
