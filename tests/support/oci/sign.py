"""Signs requests with the official SDK's own signer classes, so that other signatures can be compared with its.

Reads `{"private_key_pem", "key_id", "requests": [{"method", "url", "body", "date", "form": "service" | "federation"}]}`
from standard input and writes `[{"authorization", "headers": {name: value}, "target"}]`: the headers are the signed ones,
`target` is path and query as the SDK sends them.
"""

import json
import sys

import oci.signer
from oci._vendor import requests
from oci.auth.federation_client import AuthTokenRequestSigner

BODY_METHODS = ("POST", "PUT", "PATCH")


class Held:
    """Stands in for what fetches the leaf's key from the metadata service."""

    def __init__(self, key):
        self._key = key

    def get_private_key(self):
        return self._key


def signers(pem, key_id):
    """The SDK's signer for each form, with a keyId of any kind put in."""
    service = oci.signer.Signer("tenancy", "user", "fingerprint", None, private_key_content=pem)
    federation = AuthTokenRequestSigner("tenancy", "fingerprint", Held(service.private_key))
    for signer in (service, federation):
        signer._basic_signer.reset_signer(key_id, service.private_key)
        signer._body_signer.reset_signer(key_id, service.private_key)
    return {"service": service, "federation": federation}


def signed(signer, request):
    prepared = requests.Request(
        request["method"],
        request["url"],
        headers={"date": request["date"], "content-type": "application/json"},
        data=request["body"],
        auth=signer,
    ).prepare()
    authorization = prepared.headers["authorization"]
    names = authorization.partition('headers="')[2].partition('"')[0].split(" ")
    return {
        "authorization": authorization,
        "headers": {name: prepared.headers[name] for name in names if name != "(request-target)"},
        "target": prepared.path_url,
    }


def main():
    given = json.load(sys.stdin)
    by_form = signers(given["private_key_pem"], given["key_id"])
    json.dump([signed(by_form[request["form"]], request) for request in given["requests"]], sys.stdout)


if __name__ == "__main__":
    main()
