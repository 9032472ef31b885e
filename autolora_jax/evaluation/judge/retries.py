"""When a request brought no answer: what kind of failure that is, and how long to wait before the next try."""

import random
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

PASSING = "passing"  # may be over soon
FORM = "form"  # the server does not take requests of this form, or not this picture
PICTURE = "picture"  # of this picture alone
REFUSAL = "refusal"  # a filter would not let it through
HOPELESS = "hopeless"  # of all that would follow

STATUSES = {
    **dict.fromkeys((400, 422), FORM),
    **dict.fromkeys((*range(300, 400), 401, 402, 404, 405), HOPELESS),
    **dict.fromkeys((408, 409, 425, 429), PASSING),
}
CODES = {
    "content_filter": REFUSAL,
    "content_policy_violation": REFUSAL,
    "insufficient_quota": HOPELESS,
    "model_not_found": HOPELESS,
}
LONGEST_ASKED = 900.0  # seconds: a server that says "later" and means later than this has no time today


class Fault(Exception):
    """A request brought no answer. kind: one of the above; after: seconds that the server asks to wait."""

    def __init__(self, why: str, kind: str = PASSING, after: float | None = None) -> None:
        super().__init__(why)
        self.kind, self.after = kind, after


def status_fault(status: int, code: str, message: str, retry_after: str | None) -> Fault:
    """What an HTTP status other than 200 means."""
    kind = CODES.get(code) or STATUSES.get(status) or (PASSING if status >= 500 else PICTURE)
    after = _seconds(retry_after)
    if after is not None and after > LONGEST_ASKED:
        return Fault(f"HTTP {status}: {message}; it asks to come back in {after:.0f} seconds", HOPELESS)
    return Fault(f"HTTP {status}: {message}", kind, after)


def _seconds(retry_after: str | None) -> float | None:
    """Of a Retry-After header, which holds seconds or a date."""
    if retry_after is None:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    return max(0.0, ((date if date.tzinfo else date.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds())


@dataclass(frozen=True)
class Patience:
    """tries: of one request, the first among them; first, longest: seconds to wait, doubled from try to try."""

    tries: int = 8
    first: float = 1.0
    longest: float = 60.0

    def wait(self, tried: int, after: float | None) -> float:
        """Seconds before the next try, after `tried` of them: up to a half less, so that not all come back at once."""
        return max(min(self.first * 2 ** (tried - 1), self.longest) * random.uniform(0.5, 1.0), after or 0.0)
