"""A test server for Oracle Cloud's KMS and identity services that verifies everything.

    python server.py [--region R] [--realm R] [--oke-listen ADDR:PORT] [--kubeconfig FILE] [--log FILE]

Prints one line of JSON that says where everything is, then serves until its standard input is closed.
"""

import argparse
import datetime
import ipaddress
import json
import os
import pathlib
import sys
import tempfile
import threading

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from admin import Admin
from crypto import Kms
from faults import Faults
from federation import Federation
from identity import Identity
from metadata import BASE as METADATA_BASE
from metadata import Metadata
from oke import Oke
from transport import Listener, tls_context
from world import World


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--region", default="eu-frankfurt-1")
    parser.add_argument("--realm", default="oc1")
    parser.add_argument("--oke-listen", type=address, default=("127.0.0.1", 0), metavar="ADDR:PORT")
    parser.add_argument("--kubeconfig", help="JSON; tokens are then reviewed by that apiserver")
    parser.add_argument("--log", type=pathlib.Path, help="one line of JSON for each request")
    return parser.parse_args()


def address(text):
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    ipaddress.ip_address(host)
    return host, int(port)


def authority(folder, addresses):
    """A throwaway CA and a certificate for these addresses and localhost; the CA's file and the TLS settings."""
    start = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(minutes=5)
    named = lambda text: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    def certificate(subject, key):
        return (
            x509.CertificateBuilder()
            .subject_name(named(subject))
            .issuer_name(named("test CA"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + datetime.timedelta(days=7))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        )

    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    usage = dict.fromkeys(
        (
            "digital_signature",
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "key_cert_sign",
            "crl_sign",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    ca = (
        certificate("test CA", ca_key)
        .add_extension(x509.BasicConstraints(True, 0), critical=True)
        .add_extension(x509.KeyUsage(**{**usage, "key_cert_sign": True, "crl_sign": True}), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    names = [x509.DNSName("localhost")] + [x509.IPAddress(ipaddress.ip_address(a)) for a in sorted(addresses)]
    leaf = (
        certificate("test server", key)
        .add_extension(x509.BasicConstraints(False, None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    ca_file, leaf_file, key_file = (folder / name for name in ("ca.crt", "tls.crt", "tls.key"))
    ca_file.write_bytes(ca.public_bytes(pem))
    leaf_file.write_bytes(leaf.public_bytes(pem))
    key_file.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return ca_file, tls_context(leaf_file, key_file)


def log_to(path):
    lock = threading.Lock()

    def log(line):
        with lock, path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    return log


def main():
    given = arguments()
    world = World(given.region, given.realm)
    known = Identity(world)
    kms = Kms(world, known)
    workloads = Oke(world, known, given.kubeconfig)
    instance_metadata = Metadata(world, known)
    listeners = {}
    faults = Faults(world, lambda: listeners["admin"].url + "/redirected")
    admin = Admin(world, known, kms, workloads, instance_metadata, faults)
    log = log_to(given.log) if given.log else None
    with tempfile.TemporaryDirectory(prefix="oci-test-server-") as folder:
        ca_file, tls = authority(pathlib.Path(folder), {"127.0.0.1", given.oke_listen[0]})

        def listen(name, handle, service=None, **more):
            listeners[name] = Listener(service or name, world, faults, handle, log=log, **more)

        listen("crypto", kms.crypto)
        listen("management", kms.management)
        listen("crypto_tls", kms.crypto, "crypto", tls=tls)
        listen("management_tls", kms.management, "management", tls=tls)
        listen("federation", Federation(world, known).handle)
        listen("metadata", instance_metadata.handle)
        listen("oke", workloads.handle, address=given.oke_listen, tls=tls)
        listen("admin", admin.handle, logged=False)
        for listener in listeners.values():
            listener.start()
        where = {name: listener.url for name, listener in listeners.items()}
        where["metadata"] += METADATA_BASE
        print(
            json.dumps(
                {
                    **where,
                    "ca_file": str(ca_file),
                    "region": world.region,
                    "realm": world.realm,
                    "tenancy": world.tenancy,
                    "compartment": world.compartment,
                    "instance": world.instance,
                    "cluster": world.cluster,
                    "vault": world.vault,
                }
            ),
            flush=True,
        )
        while os.read(sys.stdin.fileno(), 4096):
            pass
        world.ending.set()


if __name__ == "__main__":
    main()
