"""A page to play on: controls for the settings, and calls of the pipeline.

controls (what is set on the page) ──▶ GenerateConfig ──▶ studio (draws, stops, keeps) ──▶ page (shows)
                                             └──▶ copies (the same as a command, in Python, as a job)
"""
