"""The instance metadata service, version 2."""

import json

from cryptography.hazmat.primitives import serialization

from transport import Answer
from world import SHORT_NAMES, Refusal

BASE = "/opc/v2"
UNSET = object()


class Metadata:
    def __init__(self, world, known):
        self._world, self._instance = world, known.instance
        self._overrides = {}

    def override(self, path, text):
        """Another text for a path; None makes it 404, and an absent one heals it."""
        if text is UNSET:
            self._overrides.pop(path, None)
        else:
            self._overrides[path] = text

    def handle(self, request):
        if request.header("authorization") != "Bearer Oracle":
            raise Refusal(403, "NotAllowed", "Forbidden", "no Authorization: Bearer Oracle")
        if any(request.header(name) for name in ("forwarded", "x-forwarded-for", "x-forwarded-host")):
            raise Refusal(403, "NotAllowed", "Forbidden", "it came through a proxy")
        if request.method != "GET":
            raise Refusal(405, "MethodNotAllowed", "Use GET.")
        path = request.target.removeprefix(BASE) if request.target.startswith(BASE + "/") else None
        text = self._overrides.get(path, UNSET)
        if text is UNSET:
            text = self._text(path)
        if text is None:
            raise Refusal(404, "NotFound", "Not found.")
        kind = "application/json" if path == "/instance/regionInfo" else "text/plain"
        return Answer.text(text, content_type=kind)

    def _text(self, path):
        pem = serialization.Encoding.PEM
        if path == "/instance/region":
            return self._world.region
        if path == "/instance/id":
            return self._world.instance
        if path == "/instance/regionInfo":
            return json.dumps(
                {
                    "realmDomainComponent": self._world.domain,
                    "realmKey": self._world.realm,
                    "regionIdentifier": self._world.region,
                    "regionKey": SHORT_NAMES.get(self._world.region, self._world.region),
                }
            )
        if path == "/identity/cert.pem":
            return self._instance.current()[0].public_bytes(pem).decode()
        if path == "/identity/key.pem":
            traditional = serialization.PrivateFormat.TraditionalOpenSSL
            return self._instance.current()[1].private_bytes(pem, traditional, serialization.NoEncryption()).decode()
        if path == "/identity/intermediate.pem":
            return self._instance.intermediate().public_bytes(pem).decode()
        return None
