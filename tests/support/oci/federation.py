"""The authentication service: session tokens for whoever holds an instance's certificate."""

import base64
import binascii

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa

import identity
import signature
from transport import Answer
from world import Refusal, unauthenticated

PATH = "/v1/x509"
FIELDS = {"certificate", "publicKey", "intermediateCertificates", "fingerprintAlgorithm", "purpose"}
FORMS = {"fed-x509": ("sha1", hashes.SHA1), "fed-x509-sha256": ("sha256", hashes.SHA256)}


def certificate(text):
    """A certificate as clients send it: base64 on one line, without the armour."""
    try:
        return x509.load_der_x509_certificate(base64.b64decode(text, validate=True))
    except (ValueError, TypeError, binascii.Error):
        raise Refusal(400, "InvalidParameter", "A certificate cannot be read.") from None


class Federation:
    def __init__(self, world, known):
        self._world, self._known = world, known

    def handle(self, request):
        if request.target != PATH:
            raise Refusal(404, "NotFound", "No such path.")
        if request.method != "POST":
            raise Refusal(405, "MethodNotAllowed", "Use POST.")
        request.must_be_json()
        body = request.json()
        if set(body) - FIELDS:
            raise Refusal(400, "InvalidParameter", "An unknown field.")
        for name in ("certificate", "publicKey", "intermediateCertificates"):
            if not body.get(name):
                raise Refusal(400, "MissingParameter", f"{name} is missing.")
        leaf = certificate(body["certificate"])
        sent = [certificate(text) for text in body["intermediateCertificates"]]

        def find(key_id):
            principal = self._known.instance.check(leaf, sent)
            tenancy, _, rest = key_id.partition("/")
            form, _, mark = rest.partition("/")
            if form not in FORMS:
                raise unauthenticated("the keyId is of no federation")
            name, algorithm = FORMS[form]
            request.note["fed"] = name
            if (body.get("fingerprintAlgorithm") == "SHA256") != (name == "sha256"):
                raise unauthenticated("fingerprintAlgorithm does not fit the keyId")
            # The SDKs write SHA-1 in either case, SHA-256 in lower case only.
            given = mark.lower() if name == "sha1" else mark
            if given != leaf.fingerprint(algorithm()).hex(":"):
                raise unauthenticated("the fingerprint is not that of the certificate")
            if tenancy != principal.tenancy:
                raise unauthenticated("the certificate is of another tenancy")
            if not isinstance(leaf.public_key(), rsa.RSAPublicKey):
                raise unauthenticated("the certificate's key is not RSA")
            return principal, leaf.public_key()

        # The SDKs do not sign host here, and only here.
        principal = signature.verify(request, self._world.now(), find, host_required=False)
        key = identity.session_key(body["publicKey"])
        token = self._known.tokens.issue(
            principal,
            key,
            ptype="instance",
            ttype="x509",
            opc_instance=principal.name,
            opc_compartment=self._world.compartment,
        )
        return Answer.json({"token": token})
