"""The paper's experiments, and those beyond it; the paper's numbers and prompts lie beside them.

What they have in common is `experiments.parts`. table1.py is one as a file of your own may be.
"""
