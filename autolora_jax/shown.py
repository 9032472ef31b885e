"""What tells of itself in words, also in a notebook."""

import html


class Shown:
    """Its text, as it is printed."""

    def _repr_html_(self) -> str:
        return f'<pre style="font-family:monospace">{html.escape(str(self))}</pre>'
