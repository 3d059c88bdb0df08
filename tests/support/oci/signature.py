"""Verifies request signatures, version 1, from the rules alone: shares nothing with any client.

https://docs.oracle.com/en-us/iaas/Content/API/Concepts/signingrequests.htm and draft-cavage-http-signatures-08
"""

import base64
import binascii
import datetime
import email.utils
import hashlib
import re

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from world import unauthenticated

SKEW_SECONDS = 5 * 60
BODY_METHODS = ("POST", "PUT", "PATCH")
BODY_HEADERS = ("content-length", "content-type", "x-content-sha256")
ATTRIBUTE = re.compile(r'\s*([A-Za-z]+)="([^"]*)"\s*(,|$)')
HTTP_DATE = re.compile(r"[A-Z][a-z]{2}, \d{2} [A-Z][a-z]{2} \d{4} \d{2}:\d{2}:\d{2} GMT")


def attributes(authorization):
    """The attributes of an `Authorization` header, in whatever order they come."""
    scheme, _, rest = (authorization or "").partition(" ")
    if scheme.lower() != "signature" or not rest.strip():
        raise unauthenticated("no signature")
    found, position = {}, 0
    while position < len(rest):
        match = ATTRIBUTE.match(rest, position)
        if not match:
            raise unauthenticated(f"the Authorization header cannot be read from character {position} on")
        name, value, end = match.groups()
        if name in found:
            raise unauthenticated(f"attribute {name} twice")
        found[name] = value
        position = match.end()
        if end == "," and position >= len(rest):
            raise unauthenticated("a comma ends the Authorization header")
    for name in ("version", "keyId", "algorithm", "headers", "signature"):
        if not found.get(name):
            raise unauthenticated(f"attribute {name} is missing")
    if found["version"] != "1":
        raise unauthenticated("version is not 1")
    if found["algorithm"] != "rsa-sha256":
        raise unauthenticated("algorithm is not rsa-sha256")
    return found


def http_date(text):
    """Seconds since 1970 of a date in HTTP's form, GMT and nothing else."""
    if not HTTP_DATE.fullmatch(text):
        raise unauthenticated("the date is not in HTTP form")
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except ValueError:
        raise unauthenticated("the date does not exist") from None
    if moment.strftime("%a") != text[:3]:
        raise unauthenticated("the weekday does not fit the date")
    return moment.replace(tzinfo=datetime.timezone.utc).timestamp()


def required(method, host_required):
    names = ["(request-target)"] + (["host"] if host_required else [])
    return names + list(BODY_HEADERS) if method in BODY_METHODS else names


def signing_string(request, names):
    lines = []
    for name in names:
        if name == "(request-target)":
            value = f"{request.method.lower()} {request.target}"
        else:
            value = single(request, name)
        lines.append(f"{name}: {value}")
    return "\n".join(lines)


def single(request, name):
    values = request.all(name)
    if len(values) != 1:
        raise unauthenticated(f"{len(values)} headers {name}, and 1 is signed")
    return values[0].strip()


def check_body(request):
    """What is signed about the body is true of the body."""
    if single(request, "content-length") != str(len(request.body)):
        raise unauthenticated("content-length does not fit the body")
    digest = base64.b64encode(hashlib.sha256(request.body).digest()).decode()
    if single(request, "x-content-sha256") != digest:
        raise unauthenticated("x-content-sha256 does not fit the body")


def verify(request, now, find, host_required=True):
    """Who signed the request. `find` gives the principal and public key of a keyId."""
    found = attributes(request.header("authorization"))
    names = found["headers"].split(" ")
    request.note["signed"] = found["headers"]
    if len(set(names)) != len(names):
        raise unauthenticated("a header is listed twice")
    if [name for name in names if name != name.lower()]:
        raise unauthenticated("a listed header is not in lower case")
    dates = [name for name in ("date", "x-date") if name in names]
    if not dates:
        raise unauthenticated("the date is not signed")
    for name in required(request.method, host_required):
        if name not in names:
            raise unauthenticated(f"{name} is not signed")
    if "host" in names and single(request, "host").lower() not in request.authorities:
        raise unauthenticated("host is not this server")
    if request.method in BODY_METHODS:
        check_body(request)
    elif request.body:
        raise unauthenticated("a body that nothing signs")
    for name in dates:
        if abs(http_date(single(request, name)) - now) > SKEW_SECONDS:
            raise unauthenticated("the date is more than 5 minutes off")
    principal, key = find(found["keyId"])
    request.note["principal"] = principal.name
    try:
        signature = base64.b64decode(found["signature"], validate=True)
        key.verify(signature, signing_string(request, names).encode(), padding.PKCS1v15(), hashes.SHA256())
    except (binascii.Error, InvalidSignature):
        raise unauthenticated("the signature does not fit the request and the key") from None
    return principal
