"""The paper's experiments, and those its reviewers asked for: one command draws, scores and reports each.

paper/ (the experiments, of parts and curves) → experiment (what is compared), changes → batch (draws it)
→ drawn, scorers, scoring → results → tables, plots, frontier, sheets → report
"""
