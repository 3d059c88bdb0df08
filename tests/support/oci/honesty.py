"""Proves the test server honest: Oracle's own SDK, unmodified, is served by it, and what must be refused is.

python honesty.py
"""

import base64
import contextlib
import email.utils
import http.client
import http.server
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.parse
import warnings
import zlib
from unittest import mock

import oci
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from oci._vendor import requests
from oci.key_management.models import DecryptDataDetails, EncryptDataDetails, GenerateKeyDetails, KeyShape

HERE = pathlib.Path(__file__).resolve().parent
PLAINTEXT = b"0123456789abcdef0123456789abcdef"
# A loopback address of our own: the port of workload identity is fixed, and another run may have it.
HOST = f"127.{random.randint(1, 250)}.{random.randint(0, 250)}.{random.randint(2, 250)}"
WORKLOAD_PORT = 12250


def b64(data):
    return base64.b64encode(data).decode()


class Server:
    """A running server, and the client of its admin listener."""

    def __init__(self, *arguments):
        self.process = subprocess.Popen(
            [sys.executable, HERE / "server.py", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.where = json.loads(self.process.stdout.readline())

    def stop(self):
        self.process.stdin.close()
        self.process.stdout.close()
        return self.process.wait(10)

    def admin(self, path, /, **body):
        status, _, answer = plain(self.where["admin"], "POST", path, json.dumps(body))
        assert status == 200, answer
        return json.loads(answer)

    def log(self):
        return json.loads(plain(self.where["admin"], "GET", "/log")[2])


def plain(url, method, path, body=None, headers=()):
    """An HTTP request without any SDK."""
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=10)
    with contextlib.closing(connection):
        connection.request(method, path, body, dict(headers))
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()


def setUpModule():
    global server
    for name in list(os.environ):
        # Another configuration, a proxy, or another bundle of CAs: each would win over what a test says.
        if name.startswith("OCI_") or name.lower().endswith(("_proxy", "_ca_bundle")):
            del os.environ[name]
    server = Server("--oke-listen", f"{HOST}:{WORKLOAD_PORT}")


def tearDownModule():
    assert server.stop() == 0


NO_RETRY = oci.retry.NoneRetryStrategy()
NO_BREAKER = oci.circuit_breaker.NoCircuitBreakerStrategy()


def clients(config=None, signer=None, tls=False):
    """The SDK's two clients of a vault."""
    made = []
    for kind, service in (
        (oci.key_management.KmsCryptoClient, "crypto"),
        (oci.key_management.KmsManagementClient, "management"),
    ):
        more = {"signer": signer} if signer else {}
        url = server.where[service + ("_tls" if tls else "")]
        client = kind(config or {}, url, retry_strategy=NO_RETRY, circuit_breaker_strategy=NO_BREAKER, **more)
        if tls:
            client.base_client.session.verify = server.where["ca_file"]
        made.append(client)
    return made


def encrypt(client, key, plaintext=PLAINTEXT, **more):
    return client.encrypt(EncryptDataDetails(key_id=key, plaintext=b64(plaintext), **more)).data


def decrypt(client, key, ciphertext, **more):
    return client.decrypt(DecryptDataDetails(key_id=key, ciphertext=ciphertext, **more)).data


def api_config(form="pkcs8", pass_phrase=None, **more):
    made = server.admin("/api-keys", form=form, **({"pass_phrase": pass_phrase} if pass_phrase else {}), **more)
    config = {name: made[name] for name in ("tenancy", "user", "fingerprint", "region")}
    return {**config, "key_content": made["pem"], "pass_phrase": pass_phrase}


def instance_signer():
    with mock.patch.dict(os.environ, OCI_METADATA_BASE_URL=server.where["metadata"]):
        return oci.auth.signers.InstancePrincipalsSecurityTokenSigner(
            federation_endpoint=server.where["federation"] + "/v1/x509",
            retry_strategy=NO_RETRY,
            federation_client_retry_strategy=NO_RETRY,
            federation_client_circuit_breaker_strategy=NO_BREAKER,
        )


def resource_signer(**given):
    made = server.admin("/resource-principal", **given)
    environment = {
        "OCI_RESOURCE_PRINCIPAL_VERSION": "2.2",
        "OCI_RESOURCE_PRINCIPAL_RPST": made["rpst"],
        "OCI_RESOURCE_PRINCIPAL_PRIVATE_PEM": made["private_pem"],
        "OCI_RESOURCE_PRINCIPAL_REGION": made["region"],
    }
    if "pass_phrase" in given:
        environment["OCI_RESOURCE_PRINCIPAL_PRIVATE_PEM_PASSPHRASE"] = given["pass_phrase"]
    with mock.patch.dict(os.environ, environment):
        return oci.auth.signers.get_resource_principals_signer(), made


def account_token(namespace, name):
    part = lambda value: base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()
    now = int(time.time())
    claims = {
        "sub": f"system:serviceaccount:{namespace}:{name}",
        "iat": now,
        "exp": now + 3600,
        "jti": os.urandom(8).hex(),
    }
    return f"{part({'alg': 'RS256', 'typ': 'JWT'})}.{part(claims)}.{part('signature')}"


def workload_signer(token, ca_file=None):
    environment = {
        "KUBERNETES_SERVICE_HOST": HOST,
        "OCI_KUBERNETES_SERVICE_ACCOUNT_CERT_PATH": ca_file or server.where["ca_file"],
        "OCI_RESOURCE_PRINCIPAL_VERSION": "2.2",
        "OCI_RESOURCE_PRINCIPAL_REGION": server.where["region"],
    }
    with mock.patch.dict(os.environ, environment):
        return oci.auth.signers.get_oke_workload_identity_resource_principal_signer(
            service_account_token=token, retry_strategy=NO_RETRY
        )


class Case(unittest.TestCase):
    def setUp(self):
        server.admin("/faults/clear")
        server.admin("/log/clear")
        server.admin("/clock", offset_seconds=0)
        server.admin("/tokens", life_seconds=1200)
        self.key = server.admin("/keys")

    @contextlib.contextmanager
    def refused(self, status, code, reason=None):
        with self.assertRaises(oci.exceptions.ServiceError) as caught:
            yield
        self.assertEqual((caught.exception.status, caught.exception.code), (status, code))
        self.assertTrue(caught.exception.request_id)
        if reason:
            self.assertIn(reason, server.log()[-1]["reason"])

    def round_trip(self, config=None, signer=None, principal=None, tls=False):
        crypto, management = clients(config, signer, tls)
        sealed = encrypt(crypto, self.key["id"], associated_data={"a": "b"})
        self.assertEqual((sealed.key_id, sealed.key_version_id), (self.key["id"], self.key["currentKeyVersion"]))
        self.assertEqual(sealed.encryption_algorithm, "AES_256_GCM")
        opened = decrypt(crypto, self.key["id"], sealed.ciphertext, associated_data={"a": "b"})
        self.assertEqual(base64.b64decode(opened.plaintext), PLAINTEXT)
        self.assertEqual(opened.plaintext_checksum, str(zlib.crc32(PLAINTEXT)))
        self.assertEqual(opened.key_version_id, self.key["currentKeyVersion"])
        key = management.get_key(self.key["id"]).data
        self.assertEqual((key.id, key.current_key_version), (self.key["id"], self.key["currentKeyVersion"]))
        self.assertEqual((key.key_shape.algorithm, key.key_shape.length), ("AES", 32))
        self.assertEqual((key.lifecycle_state, key.protection_mode), ("ENABLED", "SOFTWARE"))
        self.assertEqual(
            {entry["principal"] for entry in server.log() if entry["service"] in ("crypto", "management")}, {principal}
        )


class TheSdkIsServed(Case):
    def test_with_an_api_key_in_every_form(self):
        for form, pass_phrase in (
            ("pkcs8", None),
            ("pkcs1", None),
            ("pkcs8-encrypted", "p w"),
            ("traditional-encrypted", "p w"),
        ):
            with self.subTest(form):
                server.admin("/log/clear")
                config = api_config(form, pass_phrase)
                self.round_trip(config, principal=config["user"])

    def test_with_the_label_that_the_console_puts_below_a_key(self):
        config = api_config(label=True)
        self.assertTrue(config["key_content"].endswith("OCI_API_KEY\n"))
        self.round_trip(config, principal=config["user"])

    def test_over_tls(self):
        config = api_config()
        self.round_trip(config, principal=config["user"], tls=True)

    def test_with_an_instance_principal(self):
        self.round_trip(signer=instance_signer(), principal=server.where["instance"])
        federation = [entry for entry in server.log() if entry["service"] == "federation"]
        self.assertEqual([(entry["status"], entry["fed"]) for entry in federation], [(200, "sha1")])

    def test_with_a_resource_principal(self):
        signer, made = resource_signer()
        self.assertEqual(
            (signer.tenancy_id, signer.compartment_id), (server.where["tenancy"], server.where["compartment"])
        )
        self.round_trip(signer=signer, principal=made["resource"])

    def test_with_a_resource_principal_whose_key_has_a_pass_phrase(self):
        signer, made = resource_signer(pass_phrase="p w")
        self.round_trip(signer=signer, principal=made["resource"])

    def test_with_a_workload_identity(self):
        token = account_token("ns", "sa")
        server.admin("/oke", tokens=[token])
        signer = workload_signer(token)
        claims = signer.security_token.get_jwt()
        self.assertEqual(claims["res_tenant"], server.where["tenancy"])
        self.assertEqual((claims["namespace"], claims["service_account"]), ("ns", "sa"))
        self.round_trip(signer=signer, principal="workload:ns/sa")

    def test_with_data_keys(self):
        crypto, _ = clients(api_config())
        for include in (True, False):
            made = crypto.generate_data_encryption_key(
                GenerateKeyDetails(
                    key_id=self.key["id"], include_plaintext_key=include, key_shape=KeyShape(algorithm="AES", length=32)
                )
            ).data
            opened = decrypt(crypto, self.key["id"], made.ciphertext).plaintext
            self.assertEqual(made.plaintext, opened if include else None)
            self.assertEqual(len(base64.b64decode(opened)), 32)

    def test_after_a_rotation_with_old_and_new_versions(self):
        crypto, management = clients(api_config())
        old = encrypt(crypto, self.key["id"])
        version = server.admin("/keys/rotate", id=self.key["id"])["currentKeyVersion"]
        self.assertEqual(management.get_key(self.key["id"]).data.current_key_version, version)
        new = encrypt(crypto, self.key["id"])
        self.assertEqual(new.key_version_id, version)
        for sealed in (old, new):
            opened = decrypt(crypto, self.key["id"], sealed.ciphertext)
            self.assertEqual(base64.b64decode(opened.plaintext), PLAINTEXT)
            self.assertEqual(opened.key_version_id, sealed.key_version_id)
        by_choice = encrypt(crypto, self.key["id"], key_version_id=old.key_version_id)
        self.assertEqual(by_choice.key_version_id, old.key_version_id)
        listed = management.list_key_versions(self.key["id"]).data
        self.assertEqual([v.id for v in listed], [new.key_version_id, old.key_version_id])

    def test_with_what_the_admin_listener_encrypted(self):
        sealed = server.admin("/encrypt", id=self.key["id"], plaintext=b64(PLAINTEXT), associatedData={"a": "b"})
        opened = decrypt(clients(api_config())[0], self.key["id"], sealed["ciphertext"], associated_data={"a": "b"})
        self.assertEqual(base64.b64decode(opened.plaintext), PLAINTEXT)

    def test_after_a_revocation_with_a_fresh_token(self):
        signer = instance_signer()
        crypto, _ = clients(signer=signer)
        server.admin("/tokens/revoke")
        encrypt(crypto, self.key["id"])
        self.assertEqual([e["status"] for e in server.log() if e["service"] == "crypto"], [401, 200])

    def test_after_a_rotation_of_the_certificate(self):
        signer = instance_signer()
        server.admin("/instance/rotate", revoke_old=True)
        signer.refresh_security_token()
        encrypt(clients(signer=signer)[0], self.key["id"])

    def test_again_after_denial_is_taken_back(self):
        config = api_config()
        crypto, _ = clients(config)
        server.admin("/deny", principal=config["user"])
        with self.refused(404, "NotAuthorizedOrNotFound"):
            encrypt(crypto, self.key["id"])
        server.admin("/allow", principal=config["user"])
        encrypt(crypto, self.key["id"])


class Signing(oci.signer.Signer):
    """The SDK's signer, with other headers signed."""

    def __init__(
        self,
        config,
        generic=("date", "(request-target)", "host"),
        body=("content-length", "content-type", "x-content-sha256"),
    ):
        super().__init__(
            config["tenancy"], config["user"], config["fingerprint"], None, private_key_content=config["key_content"]
        )
        self.create_signers(self.api_key, self.private_key, list(generic), list(body))


class Changing(Signing):
    """Changes requests after they were signed."""

    def __init__(self, config, change):
        super().__init__(config)
        self.change = change

    def __call__(self, request, enforce_content_headers=True):
        request = super().__call__(request, enforce_content_headers)
        self.change(request)
        return request


class TheServerRefusesASignature(Case):
    def setUp(self):
        super().setUp()
        self.config = api_config()

    def send(self, config=None, signer=None):
        return encrypt(clients(config or self.config, signer)[0], self.key["id"])

    def test_of_another_private_key(self):
        with self.refused(401, "NotAuthenticated", "does not fit the request and the key"):
            self.send({**self.config, "key_content": api_config()["key_content"]})

    def test_with_the_fingerprint_of_another_key(self):
        with self.refused(401, "NotAuthenticated", "no such tenancy"):
            self.send({**self.config, "fingerprint": api_config()["fingerprint"]})

    def test_of_an_unknown_user(self):
        with self.refused(401, "NotAuthenticated", "no such tenancy"):
            self.send({**self.config, "user": "ocid1.user.oc1..nobody"})

    def test_of_another_tenancy(self):
        with self.refused(401, "NotAuthenticated", "no such tenancy"):
            self.send({**self.config, "tenancy": "ocid1.tenancy.oc1..another"})

    def test_with_a_stale_date(self):
        for offset in (-360, 360):
            date = email.utils.formatdate(time.time() + offset, usegmt=True)
            with mock.patch("oci.signer.email.utils.formatdate", return_value=date):
                with self.refused(401, "NotAuthenticated", "5 minutes"):
                    self.send()

    def test_whose_date_is_right_but_not_by_the_servers_clock(self):
        self.send()
        server.admin("/clock", offset_seconds=600)
        with self.assertRaises(oci.exceptions.ServiceError) as caught:
            self.send()
        self.assertEqual(caught.exception.status, 401)
        date = email.utils.parsedate_to_datetime(caught.exception.headers["date"]).timestamp()
        self.assertAlmostEqual(date - time.time(), 600, delta=5)

    def test_over_a_tampered_body(self):
        def change(request):
            body = json.loads(request.body)
            body["plaintext"] = b64(PLAINTEXT[::-1])
            request.body = json.dumps(body)
            request.headers["content-length"] = str(len(request.body))

        with self.refused(401, "NotAuthenticated"):
            self.send(signer=Changing(self.config, change))

    def test_over_a_tampered_body_of_the_same_length(self):
        def change(request):
            request.body = request.body.replace(b64(PLAINTEXT), b64(PLAINTEXT[::-1]))

        with self.refused(401, "NotAuthenticated", "x-content-sha256"):
            self.send(signer=Changing(self.config, change))

    def test_over_another_target(self):
        def change(request):
            request.url = request.url.replace("/encrypt", "/decrypt")

        with self.refused(401, "NotAuthenticated", "does not fit the request"):
            self.send(signer=Changing(self.config, change))

    def test_for_another_host(self):
        def change(request):
            request.headers["host"] = "kms.example"

        with self.refused(401, "NotAuthenticated", "host is not this server"):
            self.send(signer=Changing(self.config, change))

    def test_that_leaves_out_a_header(self):
        generic, body = ("date", "(request-target)", "host"), ("content-length", "content-type", "x-content-sha256")
        for left_out in generic + body:
            with self.subTest(left_out):
                signer = Signing(self.config, [n for n in generic if n != left_out], [n for n in body if n != left_out])
                with self.refused(401, "NotAuthenticated", "is not signed"):
                    self.send(signer=signer)

    def test_with_another_algorithm_or_version_or_rubbish(self):
        for old, new in (
            ('"rsa-sha256"', '"rsa-sha1"'),
            ('version="1"', 'version="2"'),
            (',version="1"', ""),
            ("Signature ", "Bearer "),
            ('",', '" '),
            ('headers="date ', 'headers="date date '),
            ('headers="date', 'headers="Date'),
            ('signature="', 'signature="AAAA'),
            ('signature="', 'signature="!'),
            ('keyId="', 'keyId="x'),
        ):
            with self.subTest(new):

                def change(request):
                    text = request.headers["authorization"]
                    self.assertIn(old, text)
                    request.headers["authorization"] = text.replace(old, new)

                with self.refused(401, "NotAuthenticated"):
                    self.send(signer=Changing(self.config, change))

    def test_but_takes_the_headers_and_attributes_in_any_order(self):
        def change(request):
            scheme, _, rest = request.headers["authorization"].partition(" ")
            request.headers["authorization"] = f"{scheme} {', '.join(reversed(rest.split(',')))}"

        signer = Changing(self.config, change)
        signer.create_signers(
            signer.api_key,
            signer.private_key,
            ["host", "(request-target)"],
            ["x-content-sha256", "date", "content-type", "content-length"],
        )
        self.send(signer=signer)


class TheServerRefusesASession(Case):
    def send(self, signer):
        return encrypt(clients(signer=signer)[0], self.key["id"])

    def test_whose_token_has_expired(self):
        signer, _ = resource_signer(life_seconds=-1)
        with self.refused(401, "NotAuthenticated", "expired"):
            self.send(signer)

    def test_whose_token_was_revoked(self):
        signer, _ = resource_signer()
        self.send(signer)
        server.admin("/tokens/revoke")
        with self.refused(401, "NotAuthenticated", "revoked"):
            self.send(signer)

    def test_whose_token_is_of_another_session_key(self):
        one, other = resource_signer()[0], resource_signer()[0]
        one._body_signer.reset_signer(one.api_key, other.private_key)
        with self.refused(401, "NotAuthenticated", "does not fit the request and the key"):
            self.send(oci.auth.signers.SecurityTokenSigner(one.api_key.removeprefix("ST$"), other.private_key))

    def test_whose_token_was_altered(self):
        signer, made = resource_signer()
        header, claims, signature = made["rpst"].split(".")
        value = json.loads(base64.urlsafe_b64decode(claims + "=="))
        value["exp"] += 3600
        claims = base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()
        for token in (f"{header}.{claims}.{signature}", "x.y.z", "nothing"):
            with self.subTest(token[:8]), self.refused(401, "NotAuthenticated", "the token"):
                self.send(oci.auth.signers.SecurityTokenSigner(token, signer.private_key))

    def test_of_another_tenancy(self):
        server.admin("/instance/rotate", tenancy="ocid1.tenancy.oc1..another")
        try:
            signer = instance_signer()
            self.assertEqual(signer.tenancy_id, "ocid1.tenancy.oc1..another")
            with self.refused(404, "NotAuthorizedOrNotFound", "another tenancy"):
                self.send(signer)
        finally:
            server.admin("/instance/rotate")

    def test_and_the_sdk_itself_refuses_a_certificate_of_another_tenancy_later_on(self):
        signer = instance_signer()
        server.admin("/instance/rotate", tenancy="ocid1.tenancy.oc1..another")
        try:
            with self.assertRaisesRegex(RuntimeError, "tenancy"):
                signer.refresh_security_token()
        finally:
            server.admin("/instance/rotate")


class TheServerRefusesToFederate(Case):
    """With the SDK's own signer class and requests put together here, so that each part can be wrong."""

    def setUp(self):
        super().setUp()
        get = lambda path: plain(
            server.where["metadata"], "GET", "/opc/v2" + path, headers={"authorization": "Bearer Oracle"}.items()
        )[2]
        self.leaf = x509.load_pem_x509_certificate(get("/identity/cert.pem"))
        self.key = serialization.load_pem_private_key(get("/identity/key.pem"), None)
        self.middle = x509.load_pem_x509_certificate(get("/identity/intermediate.pem"))
        self.session = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    @staticmethod
    def bare(thing):
        if isinstance(thing, x509.Certificate):
            return b64(thing.public_bytes(serialization.Encoding.DER))
        return b64(thing.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo))

    def ask(self, key_id=None, key=None, generic=("date", "(request-target)"), **body):
        signer = oci.auth.signers.SecurityTokenSigner("", key or self.key, generic_headers=list(generic))
        mark = self.leaf.fingerprint(hashes.SHA1()).hex(":").upper()
        key_id = key_id or f"{server.where['tenancy']}/fed-x509/{mark}"
        signer._body_signer.reset_signer(key_id, key or self.key)
        body = {
            "certificate": self.bare(self.leaf),
            "publicKey": self.bare(self.session.public_key()),
            "intermediateCertificates": [self.bare(self.middle)],
            **body,
        }
        answer = requests.post(server.where["federation"] + "/v1/x509", json=body, auth=signer)
        return answer.status_code, server.log()[-1].get("reason")

    def refuses(self, reason, status=401, **given):
        got = self.ask(**given)
        self.assertEqual(got[0], status, got)
        self.assertIn(reason, got[1])

    def test_but_takes_both_forms_of_fingerprint_with_and_without_host(self):
        tenancy = server.where["tenancy"]
        sha1, sha256 = (self.leaf.fingerprint(kind).hex(":") for kind in (hashes.SHA1(), hashes.SHA256()))
        self.assertEqual(self.ask(), (200, None))
        self.assertEqual(self.ask(f"{tenancy}/fed-x509/{sha1}"), (200, None))
        self.assertEqual(self.ask(f"{tenancy}/fed-x509-sha256/{sha256}", fingerprintAlgorithm="SHA256"), (200, None))
        self.assertEqual([e["fed"] for e in server.log() if e["service"] == "federation"], ["sha1", "sha1", "sha256"])
        self.assertEqual(self.ask(generic=("host", "date", "(request-target)")), (200, None))

    def test_when_fingerprint_and_field_do_not_fit(self):
        tenancy = server.where["tenancy"]
        sha1, sha256 = (self.leaf.fingerprint(kind).hex(":") for kind in (hashes.SHA1(), hashes.SHA256()))
        self.refuses("fingerprintAlgorithm", key_id=f"{tenancy}/fed-x509-sha256/{sha256}")
        self.refuses("fingerprintAlgorithm", fingerprintAlgorithm="SHA256")
        self.refuses("fingerprint", key_id=f"{tenancy}/fed-x509/{sha256}")
        self.refuses("fingerprint", key_id=f"{tenancy}/fed-x509/{sha1[:-2]}00")
        self.refuses("no federation", key_id=f"{tenancy}/ocid1.user.oc1..x/{sha1}")

    def test_for_the_tenancy_of_somebody_else(self):
        mark = self.leaf.fingerprint(hashes.SHA1()).hex(":")
        self.refuses("another tenancy", key_id=f"ocid1.tenancy.oc1..another/fed-x509/{mark}")

    def test_for_who_does_not_have_the_certificates_key(self):
        self.refuses("does not fit the request and the key", key=self.session)

    def test_without_the_intermediate_or_with_a_foreign_one(self):
        self.refuses("is missing", 400, intermediateCertificates=[])
        self.refuses("chain", intermediateCertificates=[self.bare(self.leaf)])
        self.refuses("cannot be read", 400, intermediateCertificates=["AAAA"])

    def test_for_a_certificate_that_names_the_right_issuer_but_is_not_of_it(self):
        now = self.leaf.not_valid_before_utc
        builder = x509.CertificateBuilder()
        with warnings.catch_warnings():
            # The instance's name is longer than a common name may be.
            warnings.simplefilter("ignore")
            builder = builder.subject_name(self.leaf.subject)
        forged = (
            builder.issuer_name(self.leaf.issuer)
            .public_key(self.session.public_key())
            .serial_number(7)
            .not_valid_before(now)
            .not_valid_after(self.leaf.not_valid_after_utc)
            .sign(self.session, hashes.SHA256())
        )
        mark = forged.fingerprint(hashes.SHA1()).hex(":")
        self.refuses(
            "chain",
            key_id=f"{server.where['tenancy']}/fed-x509/{mark}",
            key=self.session,
            certificate=self.bare(forged),
        )

    def test_for_a_certificate_that_was_rotated_away(self):
        self.assertEqual(self.ask()[0], 200)
        server.admin("/instance/rotate")
        self.assertEqual(self.ask()[0], 200, "the old one is good until its time is over")
        self.setUp()
        server.admin("/instance/rotate", revoke_old=True)
        self.refuses("rotated away")

    def test_for_a_certificate_out_of_its_time(self):
        server.admin("/instance/rotate", life_seconds=-1)
        try:
            self.setUp()
            self.refuses("out of its time")
        finally:
            server.admin("/instance/rotate")

    def test_for_a_weak_or_broken_session_key(self):
        weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)
        self.refuses("2048", 400, publicKey=self.bare(weak.public_key()))
        self.refuses("cannot be read", 400, publicKey="AAAA")

    def test_when_the_request_target_is_not_signed(self):
        self.refuses("(request-target) is not signed", generic=("date",))


class TheVaultRefuses(Case):
    def setUp(self):
        super().setUp()
        self.config = api_config()
        self.crypto, self.management = clients(self.config)

    def test_other_associated_data(self):
        sealed = encrypt(self.crypto, self.key["id"], associated_data={"a": "b"}).ciphertext
        for other in ({"a": "c"}, {"b": "a"}, {}, None, {"a": "b", "c": "d"}):
            with self.subTest(other), self.refused(400, "InvalidParameter"):
                decrypt(self.crypto, self.key["id"], sealed, associated_data=other)

    def test_damaged_ciphertext(self):
        data = bytearray(base64.b64decode(encrypt(self.crypto, self.key["id"]).ciphertext))
        for position in (0, 10, 25, 40, len(data) - 1):
            damaged = data.copy()
            damaged[position] ^= 1
            with self.subTest(position), self.refused(400, "InvalidParameter"):
                decrypt(self.crypto, self.key["id"], b64(bytes(damaged)))
        for text in ("AAAA", "no base64", b64(bytes(data[:30]))):
            with self.subTest(text), self.refused(400, "InvalidParameter"):
                decrypt(self.crypto, self.key["id"], text)

    def test_a_ciphertext_of_another_key(self):
        sealed = encrypt(self.crypto, server.admin("/keys")["id"]).ciphertext
        with self.refused(400, "InvalidParameter"):
            decrypt(self.crypto, self.key["id"], sealed)

    def test_a_disabled_key_and_one_that_awaits_deletion(self):
        sealed = encrypt(self.crypto, self.key["id"]).ciphertext
        for state in ("DISABLED", "PENDING_DELETION"):
            server.admin("/keys/state", id=self.key["id"], state=state)
            for use in (
                lambda: encrypt(self.crypto, self.key["id"]),
                lambda: decrypt(self.crypto, self.key["id"], sealed),
            ):
                with self.subTest(state), self.refused(409, "IncorrectState"):
                    use()
            self.assertEqual(self.management.get_key(self.key["id"]).data.lifecycle_state, state)
        server.admin("/keys/state", id=self.key["id"], state="DISABLED", status=400, code="KeyDisabled")
        with self.refused(400, "KeyDisabled"):
            encrypt(self.crypto, self.key["id"])
        server.admin("/keys/state", id=self.key["id"], state="ENABLED")
        decrypt(self.crypto, self.key["id"], sealed)

    def test_an_unknown_key_and_version(self):
        for use in (
            lambda: encrypt(self.crypto, "ocid1.key.oc1.x.y.z"),
            lambda: self.management.get_key("ocid1.key.oc1.x.y.z"),
        ):
            with self.refused(404, "NotAuthorizedOrNotFound"):
                use()
        with self.refused(404, "NotAuthorizedOrNotFound"):
            encrypt(self.crypto, self.key["id"], key_version_id="ocid1.keyversion.oc1.x.y.z")

    def test_a_denied_principal(self):
        sealed = encrypt(self.crypto, self.key["id"]).ciphertext
        uses = {
            "encrypt": lambda: encrypt(self.crypto, self.key["id"]),
            "decrypt": lambda: decrypt(self.crypto, self.key["id"], sealed),
            "read": lambda: self.management.get_key(self.key["id"]),
        }
        for denied in uses:
            server.admin("/deny", principal=self.config["user"], key=self.key["id"], actions=[denied])
            for action, use in uses.items():
                with self.subTest((denied, action)):
                    with self.refused(404, "NotAuthorizedOrNotFound") if action == denied else contextlib.nullcontext():
                        use()
            server.admin("/allow", principal=self.config["user"], key=self.key["id"])

    def test_a_denied_workload_but_not_its_neighbour(self):
        for name in ("denied", "allowed"):
            token = account_token("ns", name)
            server.admin("/oke", tokens=[token])
            server.admin("/deny", principal="workload:ns/denied")
            with self.refused(404, "NotAuthorizedOrNotFound") if name == "denied" else contextlib.nullcontext():
                encrypt(clients(signer=workload_signer(token))[0], self.key["id"])

    def test_what_is_no_json_or_not_what_it_takes(self):
        url = server.where["crypto"] + "/20180608/encrypt"
        good = {"keyId": self.key["id"], "plaintext": b64(PLAINTEXT)}
        for body, status, code in (
            ("{", 400, "CannotParseRequest"),
            ("[]", 400, "CannotParseRequest"),
            (json.dumps({"keyId": self.key["id"]}), 400, "MissingParameter"),
            (json.dumps({**good, "plaintext": "?"}), 400, "InvalidParameter"),
            (json.dumps({**good, "plaintext": b64(bytes(4097))}), 400, "InvalidParameter"),
            (json.dumps({**good, "associatedData": {"a": 1}}), 400, "InvalidParameter"),
            (json.dumps({**good, "associatedData": {"a": "x" * 4096}}), 400, "InvalidParameter"),
            (json.dumps({**good, "encryptionAlgorithm": "RSA_OAEP_SHA_256"}), 400, "InvalidParameter"),
            (json.dumps({**good, "keyID": "x"}), 400, "InvalidParameter"),
            (json.dumps(good), 200, None),
        ):
            with self.subTest(body[:40]):
                answer = requests.post(
                    url, data=body, headers={"content-type": "application/json"}, auth=Signing(self.config)
                )
                self.assertEqual((answer.status_code, answer.json().get("code")), (status, code))
                self.assertTrue(answer.headers["opc-request-id"] and answer.headers["date"])


class TheMetadataServiceRefuses(Case):
    def test_who_does_not_say_the_magic_words(self):
        for headers in (
            {},
            {"authorization": "Bearer oracle"},
            {"authorization": "Bearer Oracle", "x-forwarded-for": "::1"},
        ):
            for path in ("/opc/v2/instance/region", "/opc/v2/identity/key.pem"):
                self.assertEqual(plain(server.where["metadata"], "GET", path, headers=headers.items())[0], 403)

    def test_what_it_does_not_have(self):
        headers = {"authorization": "Bearer Oracle"}.items()
        for path in ("/opc/v1/instance/region", "/opc/v2/nothing", "/opc/v2"):
            self.assertEqual(plain(server.where["metadata"], "GET", path, headers=headers)[0], 404)
        info = json.loads(plain(server.where["metadata"], "GET", "/opc/v2/instance/regionInfo", headers=headers)[2])
        self.assertEqual(
            info,
            {
                "realmDomainComponent": "oraclecloud.com",
                "realmKey": "oc1",
                "regionIdentifier": "eu-frankfurt-1",
                "regionKey": "FRA",
            },
        )

    def test_nothing_that_a_test_scripted(self):
        headers = {"authorization": "Bearer Oracle"}.items()
        get = lambda: plain(server.where["metadata"], "GET", "/opc/v2/instance/region", headers=headers)
        server.admin("/metadata", path="/instance/region", text="phx")
        self.assertEqual(get()[2], b"phx")
        server.admin("/metadata", path="/instance/region", text=None)
        self.assertEqual(get()[0], 404)
        server.admin("/metadata", path="/instance/region")
        self.assertEqual(get()[2], b"eu-frankfurt-1")


class TheClusterRefuses(Case):
    def test_a_token_that_nobody_issued(self):
        with self.assertRaises(oci.exceptions.ServiceError) as caught:
            workload_signer(account_token("ns", "unknown"))
        self.assertEqual(caught.exception.status, 401)

    def test_everybody_when_it_is_a_basic_one(self):
        token = account_token("ns", "basic")
        server.admin("/oke", tokens=[token], basic_cluster=True)
        try:
            with self.assertRaisesRegex(oci.exceptions.ServiceError, "enhanced"):
                workload_signer(token)
        finally:
            server.admin("/oke", basic_cluster=False)
        workload_signer(token)

    def test_to_be_mistaken_for_another(self):
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        ours = x509.load_pem_x509_certificate(pathlib.Path(server.where["ca_file"]).read_bytes())
        namesake = (
            x509.CertificateBuilder()
            .subject_name(ours.subject)
            .issuer_name(ours.subject)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(ours.not_valid_before_utc)
            .not_valid_after(ours.not_valid_after_utc)
            .add_extension(x509.BasicConstraints(True, 0), True)
            .sign(key, hashes.SHA256())
        )
        with tempfile.NamedTemporaryFile() as other:
            other.write(namesake.public_bytes(serialization.Encoding.PEM))
            other.flush()
            with self.assertRaises(requests.exceptions.SSLError):
                workload_signer(account_token("ns", "sa"), other.name)

    def test_a_broken_pod_key_but_takes_armour(self):
        token = account_token("ns", "armour")
        server.admin("/oke", tokens=[token])
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
        pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
        for pod_key, status in ((pem, 200), ("".join(pem.splitlines()[1:-1]), 200), ("AAAA", 400), ("", 400)):
            answer = requests.post(
                f"{server.where['oke']}/resourcePrincipalSessionTokens",
                json={"podKey": pod_key},
                headers={"authorization": f"Bearer {token}"},
                verify=server.where["ca_file"],
            )
            self.assertEqual(answer.status_code, status)
            if status == 200:
                self.assertRegex(answer.text, r'^"[A-Za-z0-9+/]+=*"$')
                self.assertTrue(json.loads(base64.b64decode(answer.json()))["token"].startswith("ST$"))


class AnApiserverDecides(unittest.TestCase):
    """A stand-in for the kube-apiserver's TokenReview."""

    def test_about_tokens(self):
        good = account_token("ns", "reviewed")
        seen = []

        class Api(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                seen.append((self.path, self.headers["authorization"], body["kind"], set(body["spec"])))
                yes = body["spec"]["token"] == good
                status = (
                    {"authenticated": yes, "user": {"username": "system:serviceaccount:ns:reviewed"}}
                    if yes
                    else {"error": "no"}
                )
                answer = json.dumps({"status": status}).encode()
                self.send_response(201)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                pass

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api) as api, tempfile.NamedTemporaryFile("w") as file:
            threading.Thread(target=api.serve_forever, daemon=True).start()
            json.dump(
                {
                    "current-context": "c",
                    "clusters": [{"name": "k", "cluster": {"server": f"http://127.0.0.1:{api.server_port}"}}],
                    "users": [{"name": "u", "user": {"token": "admin"}}],
                    "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
                },
                file,
            )
            file.flush()
            asked = Server("--kubeconfig", file.name)
            try:
                key = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
                pod_key = TheServerRefusesToFederate.bare(key)
                for token, status in ((good, 200), (account_token("ns", "other"), 401)):
                    answer = requests.post(
                        f"{asked.where['oke']}/resourcePrincipalSessionTokens",
                        json={"podKey": pod_key},
                        headers={"authorization": f"Bearer {token}"},
                        verify=asked.where["ca_file"],
                    )
                    self.assertEqual(answer.status_code, status)
                self.assertEqual([e["principal"] for e in asked.log()], ["workload:ns/reviewed", None])
            finally:
                asked.stop()
                api.shutdown()
        # No audiences: the apiserver's own.
        self.assertEqual(
            seen, [("/apis/authentication.k8s.io/v1/tokenreviews", "Bearer admin", "TokenReview", {"token"})] * 2
        )


class Faults(Case):
    def ask(self, **fault):
        server.admin("/faults", service="metadata", **fault)
        return plain(
            server.where["metadata"],
            "GET",
            "/opc/v2/instance/region",
            headers={"authorization": "Bearer Oracle"}.items(),
        )

    def test_happen_as_often_as_told_and_where(self):
        server.admin(
            "/faults",
            service="metadata",
            kind="status",
            status=503,
            code="Busy",
            times=2,
            path="region",
            skip=1,
            headers={"retry-after": "7"},
        )
        get = lambda path: plain(
            server.where["metadata"],
            "GET",
            "/opc/v2/instance/" + path,
            headers={"authorization": "Bearer Oracle"}.items(),
        )
        answers = [get("region") for _ in range(4)]
        self.assertEqual([answer[0] for answer in answers], [200, 503, 503, 200])
        self.assertEqual((answers[1][1]["retry-after"], json.loads(answers[1][2])["code"]), ("7", "Busy"))
        server.admin("/faults", service="metadata", kind="status", times=-1)
        self.assertEqual([get("id")[0] for _ in range(3)], [500] * 3)
        server.admin("/faults/clear")
        self.assertEqual(get("id")[0], 200)
        self.assertEqual(
            [e["fault"] for e in server.log()], [None, "status", "status", None, "status", "status", "status", None]
        )

    def test_give_other_bodies(self):
        self.assertIn(b"<html>", self.ask(kind="garbage")[2])
        self.assertGreater(len(self.ask(kind="large")[2]), 10 * 1024 * 1024)
        self.assertGreater(len(self.ask(kind="large", chunked=True)[2]), 10 * 1024 * 1024)
        self.assertEqual(self.ask(kind="empty")[2], b"")
        status, _, body = self.ask(kind="echo")
        self.assertEqual(status, 400)
        self.assertIn(b"Bearer Oracle", body)

    def test_break_the_connection(self):
        for kind, error in (
            ("truncated", http.client.IncompleteRead),
            ("drop", http.client.RemoteDisconnected),
            ("noise", http.client.BadStatusLine),
        ):
            with self.subTest(kind), self.assertRaises(error):
                self.ask(kind=kind)

    def test_take_their_time(self):
        start = time.monotonic()
        self.assertEqual(self.ask(kind="slow", seconds=0.3)[0], 200)
        self.assertGreater(time.monotonic() - start, 0.3)
        start = time.monotonic()
        threading.Timer(0.2, lambda: server.admin("/faults/clear")).start()
        with self.assertRaises(http.client.RemoteDisconnected):
            self.ask(kind="silent")
        self.assertLess(time.monotonic() - start, 5)

    def test_point_elsewhere_and_tell_who_went_there(self):
        status, headers, _ = self.ask(kind="redirect")
        self.assertEqual(status, 307)
        requests.get(headers["location"], headers={"authorization": "secret"})
        last = server.log()[-1]
        self.assertEqual(last["service"], "redirected")
        self.assertIn(["authorization", "secret"], last["headers"])

    def test_strike_the_sdk_too(self):
        crypto, _ = clients(api_config())
        server.admin("/faults", service="crypto", kind="status", status=429, code="TooManyRequests")
        with self.refused(429, "TooManyRequests"):
            encrypt(crypto, self.key["id"])
        encrypt(crypto, self.key["id"])


class Signatures(unittest.TestCase):
    def test_of_sign_py_are_those_of_the_rules(self):
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()
        date = "Thu, 05 Jan 2034 21:31:40 GMT"
        wanted = [
            {
                "method": "GET",
                "url": "https://kms.example/20180608/keys/k?limit=1",
                "body": None,
                "date": date,
                "form": "service",
            },
            {
                "method": "POST",
                "url": "https://kms.example:8443/20180608/encrypt",
                "body": "{}",
                "date": date,
                "form": "service",
            },
            {"method": "POST", "url": "https://auth.example/v1/x509", "body": "{}", "date": date, "form": "federation"},
        ]
        given = json.dumps({"private_key_pem": pem, "key_id": "t/u/f", "requests": wanted})
        ran = subprocess.run(
            [sys.executable, HERE / "sign.py"], input=given, capture_output=True, text=True, check=True
        )
        signed = json.loads(ran.stdout)
        post = 'content-length content-type x-content-sha256"'
        for got, names in zip(
            signed,
            ('date (request-target) host"', f"date (request-target) host {post}", f"date (request-target) {post}"),
            strict=True,
        ):
            self.assertIn(f'headers="{names}', got["authorization"])
            self.assertIn('keyId="t/u/f"', got["authorization"])
        self.assertEqual(signed[1]["headers"]["host"], "kms.example:8443")
        text = f"date: {date}\n(request-target): get /20180608/keys/k?limit=1\nhost: kms.example"
        signature = signed[0]["authorization"].partition('signature="')[2].partition('"')[0]
        key.public_key().verify(base64.b64decode(signature), text.encode(), padding.PKCS1v15(), hashes.SHA256())


if __name__ == "__main__":
    unittest.main()
