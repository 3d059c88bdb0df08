"""Makes what a throwaway kube-apiserver needs to be trusted: a CA, a serving certificate for loopback and a
key that signs ServiceAccount tokens. Runs in moto's environment, which brings `cryptography` along."""

import datetime
import ipaddress
import pathlib
import sys

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

folder = pathlib.Path(sys.argv[1])
start = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(minutes=5)
end = start + datetime.timedelta(days=7)


def write(name, data):
    (folder / name).write_bytes(data)


def private_key(name):
    key = ec.generate_private_key(ec.SECP256R1())
    write(name, key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()))
    return key


def certificate(subject, public_key, issuer, signer):
    named = lambda text: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
    return (
        x509.CertificateBuilder()
        .subject_name(named(subject)).issuer_name(named(issuer)).public_key(public_key)
        .serial_number(x509.random_serial_number()).not_valid_before(start).not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )


def usage(**given):
    names = ("digital_signature content_commitment key_encipherment data_encipherment key_agreement "
             "key_cert_sign crl_sign encipher_only decipher_only")
    return x509.KeyUsage(**{name: given.get(name, False) for name in names.split()})


def pem(builder, signer):
    return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


ca = private_key("ca.key")
write("ca.crt", pem(
    certificate("throwaway-ca", ca.public_key(), "throwaway-ca", ca)
    .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    .add_extension(usage(key_cert_sign=True, crl_sign=True), critical=True), ca))

server = private_key("apiserver.key")
names = [x509.DNSName("localhost"), x509.DNSName("kubernetes.default.svc"),
         x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
write("apiserver.crt", pem(
    certificate("kube-apiserver", server.public_key(), "throwaway-ca", ca)
    .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    .add_extension(usage(digital_signature=True), critical=True)
    .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    .add_extension(x509.SubjectAlternativeName(names), critical=False), ca))

private_key("service-accounts.key")
