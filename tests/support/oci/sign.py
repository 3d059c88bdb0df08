"""Signs requests with the official SDK's own signer classes, so that other signatures can be compared with its.

Reads `{"private_key_pem", "key_id", "requests": [{"method", "url", "body", "date", "form": "service" | "federation"}]}`
from standard input and writes `[{"authorization", "headers": {name: value}, "target"}]`: the headers are the signed ones,
`target` is path and query as the SDK sends them. A request may bring a `private_key_pem` or `key_id` of its own.
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


def signers(pem):
    """The SDK's signer for each form."""
    service = oci.signer.Signer("tenancy", "user", "fingerprint", None, private_key_content=pem)
    federation = AuthTokenRequestSigner("tenancy", "fingerprint", Held(service.private_key))
    return {"service": service, "federation": federation, "key": service.private_key}


def signed(by_form, key_id, request):
    signer = by_form[request["form"]]
    # A keyId of any kind.
    signer._basic_signer.reset_signer(key_id, by_form["key"])
    signer._body_signer.reset_signer(key_id, by_form["key"])
    # Bytes, as they are sent: of a text the SDK's client counts the characters for content-length.
    body = request["body"] and request["body"].encode()
    prepared = requests.Request(
        request["method"],
        request["url"],
        headers={"date": request["date"], "content-type": "application/json"},
        data=body,
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
    by_key, answers = {}, []
    for request in given["requests"]:
        pem, key_id = (request.get(name) or given[name] for name in ("private_key_pem", "key_id"))
        if pem not in by_key:
            by_key[pem] = signers(pem)
        answers.append(signed(by_key[pem], key_id, request))
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
