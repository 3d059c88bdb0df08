"""How tests drive the server: keys, users, policies, faults, clocks. README.md says what each path takes."""

import base64
import json

import crypto
import identity
import metadata
from transport import Answer
from world import Refusal


class Admin:
    def __init__(self, world, known, kms, workloads, instance_metadata, faults):
        self._world, self._known, self._kms = world, known, kms
        self._oke, self._metadata, self._faults = workloads, instance_metadata, faults

    def handle(self, request):
        path = request.path
        if path == "/redirected":
            self._redirected(request)
            return Answer.json({})
        if request.method == "GET" and path == "/log":
            return Answer.json(self._world.entries())
        run = self._paths().get(path)
        if request.method != "POST" or not run:
            raise Refusal(404, "NotFound", f"{request.method} {path} is nothing here; see README.md")
        body = json.loads(request.body or b"{}")
        try:
            return Answer.json(run(**body) or {})
        except (TypeError, KeyError) as error:
            raise Refusal(400, "InvalidParameter", f"{path}: {error}") from None

    def _paths(self):
        return {
            "/keys": self._key,
            "/keys/rotate": lambda id: {"currentKeyVersion": self._kms.rotate(id).id},
            "/keys/state": lambda id, state, status=None, code=None: self._kms.set_state(id, state, status, code),
            "/encrypt": self._encrypt,
            "/decrypt": self._decrypt,
            "/api-keys": self._known.api_keys.make,
            "/deny": self._world.deny,
            "/allow": self._world.allow,
            "/faults": lambda **fault: self._faults.add(fault),
            "/faults/clear": self._faults.clear,
            "/clock": self._clock,
            "/tokens": self._token_life,
            "/tokens/revoke": lambda: {"revoked": self._known.tokens.revoke()},
            "/instance/rotate": self._rotate_instance,
            "/metadata": lambda path, **given: self._metadata.override(path, given.get("text", metadata.UNSET)),
            "/oke": self._workloads,
            "/resource-principal": self._resource_principal,
            "/log/clear": self._world.forget,
        }

    def _key(self, **given):
        key = self._kms.make(**given)
        return {"id": key.id, "currentKeyVersion": key.versions[-1].id}

    def _encrypt(self, id, plaintext, associatedData=None):
        ciphertext, version = self._kms.key(id).encrypt(base64.b64decode(plaintext, validate=True), associatedData)
        return {"ciphertext": ciphertext, **crypto.by(self._kms.key(id), version)}

    def _decrypt(self, id, ciphertext, associatedData=None):
        plaintext, version = self._kms.key(id).decrypt(ciphertext, associatedData)
        return {**crypto.as_plaintext(plaintext), **crypto.by(self._kms.key(id), version)}

    def _clock(self, offset_seconds):
        self._world.clock_offset = offset_seconds

    def _token_life(self, life_seconds):
        self._world.token_life = life_seconds

    def _rotate_instance(self, life_seconds=3600, tenancy=None, revoke_old=False):
        # The first leaf is made when somebody asks for it; it must be there to be rotated away.
        self._known.instance.current()
        leaf = self._known.instance.rotate(life_seconds, tenancy, revoke_old)
        return {"serial": format(leaf.serial_number, "x")}

    def _workloads(self, basic_cluster=None, tokens=()):
        if basic_cluster is not None:
            self._oke.basic_cluster = basic_cluster
        self._oke.register(tokens)

    def _resource_principal(self, life_seconds=None, pass_phrase=None):
        principal = identity.Principal(self._world.ocid("fnfunc"), self._world.tenancy)
        key = identity.new_key()
        token = self._known.tokens.issue(
            principal,
            key.public_key(),
            life_seconds,
            ptype="resource",
            ttype="res_sp",
            res_id=principal.name,
            res_type="fnfunc",
            res_compartment=self._world.compartment,
        )
        form = "pkcs8-encrypted" if pass_phrase else "pkcs8"
        return {
            "rpst": token,
            "private_pem": identity.private_pem(key, form, pass_phrase),
            "region": self._world.region,
            "resource": principal.name,
        }

    def _redirected(self, request):
        """Where the `redirect` fault points: whoever comes is noted, with what they brought."""
        self._world.record(
            {
                "service": "redirected",
                "method": request.method,
                "path": request.target,
                "status": 200,
                "code": None,
                "principal": None,
                "key": None,
                "at": self._world.now(),
                "fed": None,
                "headers": request.headers,
            }
        )
