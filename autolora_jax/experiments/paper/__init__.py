"""A file an experiment, each with get_config() for the published models and get_builtin() for the built-in one.

The paper's numbers and prompts lie beside them. What they have in common is `experiments.parts`.
"""
