"""Pages of HTML that need no server: they run their own script and no other, whoever wrote the texts that they show."""

import base64
import hashlib
import json
import re
from typing import Any

_SCRIPT = re.compile(r"<script>(.*)</script>", re.DOTALL)
_HASH = "SCRIPT-HASH"  # in the page's content security policy


def sealed(page: str) -> str:
    """The page with its script's hash in its content security policy: browsers run that script alone."""
    script = _SCRIPT.search(page)
    assert script and _HASH in page
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    return page.replace(_HASH, f"sha256-{digest}", 1)


def inert(value: Any) -> str:
    """JSON for a <script type="application/json">: ASCII, and nothing in it can end the element."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
