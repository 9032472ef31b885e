"""The paper's experiments, and those its reviewers asked for: one command draws, scores and reports each.

catalogue, of paper/ and parts → experiment (what is compared), changes → batch (draws it) → drawn, scorers, scoring
→ results → tables, frontier, findings, plotting, sheets → report
"""
