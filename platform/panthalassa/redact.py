"""What may be shown of a text that credentials may stand in: a URI, or what a server has said."""

import os
import re

CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
SECRETS = re.compile(r"(?<=://)\S*(?=@)|\b(?:AKIA|ASIA)[A-Z0-9]{8,}\b")
PARAMETERS = re.compile(
    r"(?i)((?:password|secret\w*|token|X-Amz-Signature|X-Amz-Credential)=)[^&\s]+"
)
SHORTEST_SECRET = 8


def without_secrets(text: str) -> str:
    """The text on one line, with asterisks for the credentials of the environment, the user of a URI,
    key ids, and the secrets in a query."""
    for name in CREDENTIALS:
        value = os.environ.get(name, "")
        if len(value) >= SHORTEST_SECRET:
            text = text.replace(value, "***")
    return " ".join(PARAMETERS.sub(r"\1***", SECRETS.sub("***", text)).split())
