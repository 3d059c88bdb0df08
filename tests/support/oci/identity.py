"""Users with API keys, the instance with its certificates, and session tokens."""

import base64
import binascii
import dataclasses
import datetime
import hashlib
import json
import threading
import uuid
import warnings

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

from world import Refusal, unauthenticated

TOKEN_PREFIX = "ST$"


@dataclasses.dataclass(frozen=True)
class Principal:
    """Someone whom policies can name."""

    name: str
    tenancy: str


def new_key(bits=2048):
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


def session_key(text):
    """The public key of a session: SubjectPublicKeyInfo in base64 on one line, RSA, 2048 bits or more."""
    try:
        key = serialization.load_der_public_key(base64.b64decode(text, validate=True))
    except (ValueError, TypeError, binascii.Error):
        raise Refusal(400, "InvalidParameter", "The public key cannot be read.") from None
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size < 2048:
        raise Refusal(400, "InvalidParameter", "The public key must be RSA of 2048 bits or more.")
    return key


def fingerprint(public_key):
    der = public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.md5(der, usedforsecurity=False).digest().hex(":")


def private_pem(key, form, pass_phrase=None):
    formats = {
        "pkcs8": serialization.PrivateFormat.PKCS8,
        "pkcs1": serialization.PrivateFormat.TraditionalOpenSSL,
        "pkcs8-encrypted": serialization.PrivateFormat.PKCS8,
        "traditional-encrypted": serialization.PrivateFormat.TraditionalOpenSSL,
    }
    if form not in formats:
        raise Refusal(400, "InvalidParameter", f"form is one of {', '.join(formats)}")
    encryption = serialization.NoEncryption()
    if form.endswith("-encrypted"):
        encryption = serialization.BestAvailableEncryption((pass_phrase or "pass phrase").encode())
    return key.private_bytes(serialization.Encoding.PEM, formats[form], encryption).decode()


class ApiKeys:
    """Users; each has one API key."""

    def __init__(self, world):
        self._world = world
        self._keys = {}

    def make(self, form="pkcs8", pass_phrase=None, label=False):
        key = new_key()
        user = self._world.ocid("user", region="")
        mark = fingerprint(key.public_key())
        pem = private_pem(key, form, pass_phrase)
        self._keys[f"{self._world.tenancy}/{user}/{mark}"] = (
            Principal(user, self._world.tenancy),
            key.public_key(),
        )
        return {
            "tenancy": self._world.tenancy,
            "user": user,
            "fingerprint": mark,
            "region": self._world.region,
            # The console ends the files that it hands out like this.
            "pem": pem + ("OCI_API_KEY\n" if label else ""),
        }

    def find(self, key_id):
        if key_id not in self._keys:
            raise unauthenticated("no such tenancy, user and fingerprint")
        return self._keys[key_id]


def base64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def from_base64url(text):
    if not isinstance(text, str) or set("+/= ") & set(text):
        raise ValueError("not base64url")
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


class Tokens:
    """Issues session tokens and checks them: JWTs that carry the session's public key, as the service's own do."""

    def __init__(self, world):
        self._world = world
        self._lock = threading.Lock()
        self._key = None
        self._issued = {}
        self._revoked = set()

    def _signer(self):
        with self._lock:
            if self._key is None:
                self._key = new_key()
            return self._key

    def issue(self, principal, public_key, life=None, **claims):
        numbers = public_key.public_numbers()
        integer = lambda value: base64url(value.to_bytes((value.bit_length() + 7) // 8, "big"))
        identifier = str(uuid.uuid4())
        now = int(self._world.now())
        jwk = {
            "kid": identifier,
            "n": integer(numbers.n),
            "e": integer(numbers.e),
            "kty": "RSA",
            "alg": "RS256",
            "use": "sig",
        }
        claims = {
            "iss": "authService.oracle.com",
            "aud": "oci",
            "sub": principal.name,
            "iat": now,
            "exp": now + int(self._world.token_life if life is None else life),
            "jti": identifier,
            "tenant": principal.tenancy,
            "res_tenant": principal.tenancy,
            # A text, as in the service's tokens.
            "jwk": json.dumps(jwk, separators=(",", ":")),
            **claims,
        }
        header = {"kid": "asw_test", "alg": "RS256", "typ": "JWT"}
        parts = [base64url(json.dumps(part, separators=(",", ":")).encode()) for part in (header, claims)]
        text = ".".join(parts)
        signature = self._signer().sign(text.encode(), padding.PKCS1v15(), hashes.SHA256())
        with self._lock:
            self._issued[identifier] = principal
        return f"{text}.{base64url(signature)}"

    def check(self, token):
        """The principal, and the key that must have signed the request."""
        try:
            text, _, signature = token.rpartition(".")
            header, claims = (json.loads(from_base64url(part)) for part in text.split("."))
            if header.get("alg") != "RS256":
                raise unauthenticated("the token's algorithm is not RS256")
            self._signer().public_key().verify(
                from_base64url(signature), text.encode(), padding.PKCS1v15(), hashes.SHA256()
            )
        except (ValueError, AttributeError, binascii.Error):
            raise unauthenticated("the token cannot be read") from None
        except InvalidSignature:
            raise unauthenticated("the token is not ours") from None
        if claims["exp"] <= self._world.now():
            raise unauthenticated("the token has expired")
        with self._lock:
            if claims["jti"] in self._revoked:
                raise unauthenticated("the token was revoked")
            principal = self._issued[claims["jti"]]
        jwk = json.loads(claims["jwk"])
        n, e = (int.from_bytes(from_base64url(jwk[name]), "big") for name in ("n", "e"))
        return principal, rsa.RSAPublicNumbers(e, n).public_key()

    def revoke(self):
        """All that were issued so far."""
        with self._lock:
            self._revoked.update(self._issued)
            return len(self._revoked)


class Instance:
    """The compute instance: its leaf certificate, and the authorities above it."""

    def __init__(self, world):
        self._world = world
        self._lock = threading.RLock()
        self._authorities = None
        self._leaf = None
        self._revoked = set()

    def _made(self):
        """Root and intermediate, made when first asked for: RSA keys take their time."""
        with self._lock:
            if self._authorities is None:
                root_key, key = new_key(), new_key()
                root = self._certificate("test root", root_key.public_key(), "test root", root_key, 10 * 365 * 86400, 1)
                intermediate = self._certificate(
                    "test intermediate", key.public_key(), "test root", root_key, 5 * 365 * 86400, 0
                )
                self._authorities = (root, intermediate, key)
            return self._authorities

    def _certificate(self, subject, public_key, issuer, signer, life, path_length=None):
        named = lambda name: (
            name if isinstance(name, x509.Name) else x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        )
        now = datetime.datetime.fromtimestamp(int(self._world.now()), datetime.timezone.utc)
        # The root is older than any clock that a test might set.
        start = now - datetime.timedelta(days=365) if path_length is not None else now - datetime.timedelta(minutes=5)
        return (
            x509.CertificateBuilder()
            .subject_name(named(subject))
            .issuer_name(named(issuer))
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(now + datetime.timedelta(seconds=life))
            .add_extension(x509.BasicConstraints(path_length is not None, path_length), critical=True)
            .sign(signer, hashes.SHA256())
        )

    def current(self):
        """Certificate and private key."""
        with self._lock:
            if self._leaf is None:
                self.rotate()
            return self._leaf

    def intermediate(self):
        return self._made()[1]

    def rotate(self, life=3600, tenancy=None, revoke_old=False):
        tenancy = tenancy or self._world.tenancy
        _, intermediate, signer = self._made()
        key = new_key()
        units = [
            "opc-certtype:instance",
            f"opc-compartment:{self._world.compartment}",
            f"opc-instance:{self._world.instance}",
            f"opc-tenant:{tenancy}",
        ]
        with warnings.catch_warnings():
            # The instance's name is longer than a common name may be, and so it is at Oracle's.
            warnings.simplefilter("ignore")
            subject = x509.Name(
                [x509.NameAttribute(NameOID.COMMON_NAME, self._world.instance, _validate=False)]
                + [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit) for unit in units]
            )
            leaf = self._certificate(subject, key.public_key(), intermediate.subject, signer, life)
        with self._lock:
            if revoke_old and self._leaf is not None:
                self._revoked.add(self._leaf[0].fingerprint(hashes.SHA256()))
            self._leaf = (leaf, key)
        return leaf

    def check(self, leaf, sent):
        """The principal of a leaf certificate, given the intermediates that were sent along."""
        root, _, _ = self._made()
        if leaf.fingerprint(hashes.SHA256()) in self._revoked:
            raise unauthenticated("the certificate was rotated away")
        now = datetime.datetime.fromtimestamp(self._world.now(), datetime.timezone.utc)
        for certificate in [leaf, *sent]:
            if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
                raise unauthenticated("a certificate is out of its time")
        if not any(self._issued(leaf, middle) and self._issued(middle, root) for middle in sent):
            raise unauthenticated("the chain of certificates does not end at our root")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = [attribute.value for attribute in leaf.subject]
        after = lambda mark: [value.removeprefix(mark) for value in values if value.startswith(mark)]
        tenancies, instances = after("opc-tenant:"), after("opc-instance:")
        if len(tenancies) != 1 or len(instances) != 1:
            raise unauthenticated("the certificate does not name one tenancy and one instance")
        return Principal(instances[0], tenancies[0])

    @staticmethod
    def _issued(certificate, issuer):
        try:
            certificate.verify_directly_issued_by(issuer)
            return issuer.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
            return False


class Identity:
    """Finds who is behind a keyId."""

    def __init__(self, world):
        self.api_keys, self.tokens, self.instance = ApiKeys(world), Tokens(world), Instance(world)

    def find(self, key_id):
        if key_id.startswith(TOKEN_PREFIX):
            return self.tokens.check(key_id.removeprefix(TOKEN_PREFIX))
        return self.api_keys.find(key_id)
