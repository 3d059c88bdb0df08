"""What an OKE cluster's API address serves on port 12250: session tokens for ServiceAccount tokens."""

import base64
import binascii
import json
import ssl
import tempfile
import urllib.error
import urllib.request

import identity
from transport import Answer
from world import Refusal, unauthenticated

PATH = "/resourcePrincipalSessionTokens"
BEGIN, END = "-----BEGIN PUBLIC KEY-----", "-----END PUBLIC KEY-----"
ACCOUNT = "system:serviceaccount:"


class Reviewer:
    """Asks a real kube-apiserver about tokens. Its kubeconfig must be JSON, as `cargo xtask cluster` writes it."""

    def __init__(self, file):
        with open(file, encoding="utf-8") as opened:
            config = json.load(opened)
        named = lambda kind, name: next(item[kind] for item in config[kind + "s"] if item["name"] == name)
        context = named("context", config["current-context"])
        cluster, user = named("cluster", context["cluster"]), named("user", context["user"])
        self._url = f"{cluster['server']}/apis/authentication.k8s.io/v1/tokenreviews"
        data = base64.b64decode(cluster.get("certificate-authority-data", "")).decode() or None
        tls = ssl.create_default_context(cafile=cluster.get("certificate-authority"), cadata=data)
        if "client-certificate" in user:
            tls.load_cert_chain(user["client-certificate"], user["client-key"])
        elif "client-certificate-data" in user:
            with tempfile.NamedTemporaryFile() as pair:
                for name in ("client-certificate-data", "client-key-data"):
                    pair.write(base64.b64decode(user[name]) + b"\n")
                pair.flush()
                tls.load_cert_chain(pair.name)
        self._headers = {"content-type": "application/json", "accept": "application/json"}
        if "token" in user:
            self._headers["authorization"] = f"Bearer {user['token']}"
        self._open = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls)
        ).open

    def account(self, token):
        """The user name behind a token that is good for the apiserver itself; None for any other."""
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}
        request = urllib.request.Request(self._url, json.dumps(review).encode(), self._headers)
        try:
            with self._open(request, timeout=20) as answer:
                status = json.load(answer)["status"]
        except (urllib.error.URLError, OSError) as error:
            raise Refusal(500, "InternalServerError", "The token cannot be reviewed.", repr(error)) from None
        return status.get("user", {}).get("username") if status.get("authenticated") else None


class Oke:
    def __init__(self, world, known, kubeconfig=None):
        self._world, self._known = world, known
        self._reviewer = Reviewer(kubeconfig) if kubeconfig else None
        self._tokens = {}
        self.basic_cluster = False

    def register(self, tokens):
        """Tokens that are good while no apiserver is asked: texts, or objects with the account's names."""
        for token in tokens:
            given = token if isinstance(token, dict) else {"token": token}
            account = subject(given["token"]) or f"{ACCOUNT}default:default"
            if "namespace" in given:
                account = f"{ACCOUNT}{given['namespace']}:{given['service_account']}"
            self._tokens[given["token"]] = account

    def handle(self, request):
        if request.target != PATH:
            raise Refusal(404, "NotFound", "No such path.")
        if request.method != "POST":
            raise Refusal(405, "MethodNotAllowed", "Use POST.")
        if request.header("host") not in request.authorities:
            raise Refusal(400, "InvalidParameter", "Host is not this server.")
        if self.basic_cluster:
            raise Refusal(403, "NotAllowed", "Workload identity needs an enhanced cluster.")
        scheme, _, token = (request.header("authorization") or "").partition(" ")
        if scheme != "Bearer" or not token:
            raise unauthenticated("no bearer token")
        account = self._reviewer.account(token) if self._reviewer else self._tokens.get(token)
        if not (account or "").startswith(ACCOUNT):
            raise unauthenticated("not a token of a ServiceAccount here")
        namespace, _, name = account.removeprefix(ACCOUNT).partition(":")
        principal = identity.Principal(f"workload:{namespace}/{name}", self._world.tenancy)
        request.note["principal"] = principal.name
        request.must_be_json()
        body = request.json()
        if set(body) != {"podKey"}:
            raise Refusal(400, "InvalidParameter", "podKey, and nothing else.")
        issued = self._known.tokens.issue(
            principal,
            pod_key(body["podKey"]),
            ptype="resource",
            ttype="res_sp",
            res_type="workload",
            res_compartment=self._world.compartment,
            namespace=namespace,
            service_account=name,
            cluster_id=self._world.cluster,
        )
        inner = json.dumps({"token": identity.TOKEN_PREFIX + issued}).encode()
        return Answer.json(base64.b64encode(inner).decode())


def pod_key(text):
    """With PEM armour or without: one SDK sends it, the other does not."""
    if not isinstance(text, str):
        raise Refusal(400, "InvalidParameter", "podKey must be a text.")
    text = text.strip()
    if text.startswith(BEGIN) and text.endswith(END):
        text = text.removeprefix(BEGIN).removesuffix(END).replace("\n", "")
    return identity.session_key(text)


def subject(token):
    """`sub` of a JWT, unverified: for tokens that a test registered by itself."""
    try:
        claims = json.loads(identity.from_base64url(token.split(".")[1]))
        return claims["sub"] if str(claims["sub"]).startswith(ACCOUNT) else None
    except (IndexError, KeyError, TypeError, ValueError, binascii.Error):
        return None
