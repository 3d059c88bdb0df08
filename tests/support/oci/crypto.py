"""Vaults: the data plane (encrypt, decrypt, generateDataEncryptionKey) and what management says about keys."""

import base64
import binascii
import hashlib
import json
import os
import re
import threading
import urllib.parse
import zlib

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

import signature
from transport import Answer
from world import Refusal, not_found, rfc3339, unique

BASE = "/20180608"
ALGORITHM = "AES_256_GCM"
SHAPES = {
    "AES": {"algorithm": "AES", "length": 32},
    "RSA": {"algorithm": "RSA", "length": 256},
    "ECDSA": {"algorithm": "ECDSA", "length": 32, "curveId": "NIST_P256"},
}
MAGIC = b"OCIT"
MAX_PLAINTEXT = 4096
MAX_ASSOCIATED_DATA = 4096

COMMON = {"associatedData": dict, "loggingContext": dict, "keyVersionId": str, "encryptionAlgorithm": str}
FIELDS = {
    "encrypt": ({"keyId": str, "plaintext": str}, COMMON),
    "decrypt": ({"keyId": str, "ciphertext": str}, COMMON),
    "generateDataEncryptionKey": (
        {"keyId": str, "includePlaintextKey": bool, "keyShape": dict},
        {"associatedData": dict, "loggingContext": dict},
    ),
}


def invalid(message):
    return Refusal(400, "InvalidParameter", message)


class Version:
    def __init__(self, ocid, now):
        self.id, self.created = ocid, now
        self.mark = hashlib.sha256(ocid.encode()).digest()[:16]
        self._material = AESGCM(os.urandom(32))

    def seal(self, plaintext, bound):
        nonce = os.urandom(12)
        head = MAGIC + self.mark
        return head + nonce + self._material.encrypt(nonce, plaintext, head + bound)

    def open(self, ciphertext, bound):
        head, nonce, sealed = ciphertext[:20], ciphertext[20:32], ciphertext[32:]
        return self._material.decrypt(nonce, sealed, head + bound)


class Key:
    def __init__(self, world, region, realm, algorithm):
        self._world, self._region, self._realm = world, region, realm
        self.id = self._ocid("key")
        self.algorithm, self.created, self.state = algorithm, world.now(), "ENABLED"
        # What a use answers while the state is not ENABLED; what the service says exactly is not known for sure.
        self.unusable = (409, "IncorrectState")
        self.versions = []
        self.rotate()

    def _ocid(self, kind):
        return f"ocid1.{kind}.{self._realm}.{self._region}.{self._world.vault}.{unique()}"

    def rotate(self):
        self.versions.append(Version(self._ocid("keyversion"), self._world.now()))
        return self.versions[-1]

    def version(self, ocid):
        found = next((version for version in self.versions if version.id == ocid), None)
        if not found:
            raise not_found("no such key version")
        return found

    def bound(self, associated_data):
        """What a ciphertext authenticates beside itself."""
        return json.dumps([self.id, sorted((associated_data or {}).items())]).encode()

    def usable(self):
        if self.state == "DELETED":
            raise not_found("the key is deleted")
        if self.state != "ENABLED":
            status, code = self.unusable
            raise Refusal(status, code, f"The key is in state {self.state}.")
        if self.algorithm != "AES":
            raise invalid("This test server encrypts with AES keys only.")

    def encrypt(self, plaintext, associated_data=None, version=None):
        version = version or self.versions[-1]
        return base64.b64encode(version.seal(plaintext, self.bound(associated_data))).decode(), version

    def decrypt(self, text, associated_data=None, version=None):
        try:
            data = base64.b64decode(text, validate=True)
        except (ValueError, binascii.Error):
            raise invalid("The ciphertext is not base64.") from None
        by = next((v for v in self.versions if data[:20] == MAGIC + v.mark), None)
        if by is None or len(data) < 48 or (version and version is not by):
            raise invalid("The ciphertext is not valid for this key.")
        try:
            return by.open(data, self.bound(associated_data)), by
        except InvalidTag:
            raise invalid("The ciphertext or the associatedData is not valid.") from None

    def document(self):
        return {
            "id": self.id,
            "currentKeyVersion": self.versions[-1].id,
            "keyShape": SHAPES[self.algorithm],
            "protectionMode": "SOFTWARE",
            "lifecycleState": self.state,
            "vaultId": f"ocid1.vault.{self._realm}.{self._region}.{self._world.vault}.{self._world.vault}",
            "compartmentId": self._world.compartment,
            "displayName": "test key",
            "timeCreated": rfc3339(self.created),
            "isAutoRotationEnabled": False,
            "isPrimary": True,
            "definedTags": {},
            "freeformTags": {},
        }

    def version_document(self, version):
        document = {name: self.document()[name] for name in ("compartmentId", "vaultId")}
        return {
            "id": version.id,
            "keyId": self.id,
            "lifecycleState": "ENABLED",
            "origin": "INTERNAL",
            "timeCreated": rfc3339(version.created),
            "isPrimary": True,
            **document,
        }


class Kms:
    def __init__(self, world, identity):
        self._world, self._identity = world, identity
        self._lock = threading.RLock()
        self._keys = {}

    def make(self, region=None, realm=None, algorithm="AES"):
        if algorithm not in SHAPES:
            raise invalid(f"algorithm is one of {', '.join(SHAPES)}")
        key = Key(self._world, region or self._world.region, realm or self._world.realm, algorithm)
        self._keys[key.id] = key
        return key

    def key(self, ocid):
        if ocid not in self._keys:
            raise not_found("no such key")
        return self._keys[ocid]

    def _signer(self, request):
        return signature.verify(request, self._world.now(), self._identity.find)

    # The data plane.

    def crypto(self, request):
        principal = self._signer(request)
        action = request.target.removeprefix(BASE + "/")
        if not request.target.startswith(BASE + "/") or action not in FIELDS:
            raise Refusal(404, "NotFound", "No such path.")
        if request.method != "POST":
            raise Refusal(405, "MethodNotAllowed", "Use POST.")
        request.must_be_json()
        body = checked(action, request.json())
        request.note["key"] = body["keyId"]
        # Whoever may encrypt may have data keys made.
        permission = "decrypt" if action == "decrypt" else "encrypt"
        self._world.authorize(principal, body["keyId"], permission)
        key = self.key(body["keyId"])
        with self._lock:
            key.usable()
            version = key.version(body["keyVersionId"]) if body.get("keyVersionId") else None
            return Answer.json(getattr(self, "_" + action)(key, body, version))

    def _encrypt(self, key, body, version):
        plaintext = from_base64(body["plaintext"], "plaintext")
        if len(plaintext) > MAX_PLAINTEXT:
            raise invalid("The plaintext is too long.")
        ciphertext, version = key.encrypt(plaintext, body.get("associatedData"), version)
        return {"ciphertext": ciphertext, **by(key, version)}

    def _decrypt(self, key, body, version):
        plaintext, version = key.decrypt(body["ciphertext"], body.get("associatedData"), version)
        return {**as_plaintext(plaintext), **by(key, version)}

    def _generateDataEncryptionKey(self, key, body, _version):
        shape = body["keyShape"]
        if shape.get("algorithm") != "AES" or shape.get("length") not in (16, 24, 32) or shape.get("curveId"):
            raise invalid("keyShape must be AES of 16, 24 or 32 bytes.")
        data_key = os.urandom(shape["length"])
        ciphertext, _ = key.encrypt(data_key, body.get("associatedData"))
        return {"ciphertext": ciphertext, **(as_plaintext(data_key) if body["includePlaintextKey"] else {})}

    # What management says.

    def management(self, request):
        principal = self._signer(request)
        match = re.fullmatch(rf"{BASE}/keys/([^/]+)(/keyVersions(/([^/]+))?)?", request.path)
        if not match:
            raise Refusal(404, "NotFound", "No such path.")
        if request.method != "GET":
            raise Refusal(405, "MethodNotAllowed", "Use GET.")
        ocid, versions, _, version = match.groups()
        request.note["key"] = ocid
        self._world.authorize(principal, ocid, "read")
        key = self.key(ocid)
        with self._lock:
            if version:
                return Answer.json(key.version_document(key.version(version)))
            if versions:
                return Answer.json(self._page(key, request))
            return Answer.json(key.document(), etag=key.versions[-1].mark.hex())

    def _page(self, key, request):
        query = dict(urllib.parse.parse_qsl(request.target.partition("?")[2]))
        newest_first = query.get("sortOrder", "DESC") == "DESC"
        found = [key.version_document(version) for version in key.versions]
        limit = query.get("limit", "1000")
        if not limit.isdigit():
            raise invalid("limit must be a number.")
        return (found[::-1] if newest_first else found)[: int(limit)]

    # For administrators: nothing is signed.

    def rotate(self, ocid):
        with self._lock:
            return self.key(ocid).rotate()

    def set_state(self, ocid, state, status=None, code=None):
        with self._lock:
            key = self.key(ocid)
            key.state = state
            key.unusable = (status or 409, code or "IncorrectState")


def by(key, version):
    return {"keyId": key.id, "keyVersionId": version.id, "encryptionAlgorithm": ALGORITHM}


def as_plaintext(data):
    return {"plaintext": base64.b64encode(data).decode(), "plaintextChecksum": str(zlib.crc32(data))}


def from_base64(text, name):
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raise invalid(f"{name} is not base64.") from None


def checked(action, body):
    """The body, if all its fields are known and of the right type."""
    needed, optional = FIELDS[action]
    for name in needed:
        if body.get(name) is None or body[name] == "":
            raise Refusal(400, "MissingParameter", f"{name} is missing.")
    for name, value in body.items():
        wanted = needed.get(name) or optional.get(name)
        if wanted is None:
            raise invalid(f"{name} is not a parameter.")
        if not isinstance(value, wanted) and not (value is None and name in optional):
            raise invalid(f"{name} has the wrong type.")
    for name in ("associatedData", "loggingContext"):
        context = body.get(name) or {}
        if not all(isinstance(value, str) for value in context.values()):
            raise invalid(f"{name} must map texts to texts.")
        if len(json.dumps(context, separators=(",", ":"))) >= MAX_ASSOCIATED_DATA:
            raise invalid(f"{name} is too long.")
    if body.get("encryptionAlgorithm") not in (None, ALGORITHM):
        raise invalid("encryptionAlgorithm does not fit the key.")
    return body
