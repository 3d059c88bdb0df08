"""What all listeners share: names, the clock, who may do what, and the log of requests."""

import base64
import datetime
import os
import threading
import time

# What makes the domain of a realm; the ones that tests use.
DOMAINS = {"oc1": "oraclecloud.com", "oc2": "oraclegovcloud.com", "oc3": "oraclegovcloud.com", "oc19": "oraclecloud.eu"}
# Three letters instead of a name, as `regionKey` has them.
SHORT_NAMES = {"eu-frankfurt-1": "FRA", "us-phoenix-1": "PHX", "us-ashburn-1": "IAD", "uk-london-1": "LHR"}

NOT_AUTHENTICATED = "The required information to complete authentication was not provided or was incorrect."
NOT_FOUND = "Authorization failed or requested resource not found."


class Refusal(Exception):
    """An answer other than 200. `reason` goes to the log only: the service does not tell a client what was wrong."""

    def __init__(self, status, code, message, reason=None):
        super().__init__(reason or message)
        self.status, self.code, self.message, self.reason = status, code, message, reason or message


def unauthenticated(reason):
    return Refusal(401, "NotAuthenticated", NOT_AUTHENTICATED, reason)


def not_found(reason):
    return Refusal(404, "NotAuthorizedOrNotFound", NOT_FOUND, reason)


def unique():
    """The last part of an OCID."""
    return "a" * 8 + base64.b32encode(os.urandom(32)).decode().lower().rstrip("=")


def rfc3339(seconds):
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")


class World:
    def __init__(self, region, realm):
        self.region, self.realm = region, realm
        self.domain = DOMAINS.get(realm, f"oraclecloud{realm.removeprefix('oc')}.com")
        self.tenancy = self.ocid("tenancy", region="")
        self.compartment = self.ocid("compartment", region="")
        self.instance = self.ocid("instance")
        self.cluster = self.ocid("cluster")
        self.vault = "v" + unique()[8:20]
        self.clock_offset = 0
        self.token_life = 20 * 60
        self.ending = threading.Event()
        self._lock = threading.Lock()
        self._denied = []
        self._log = []

    def ocid(self, kind, region=None):
        return f"ocid1.{kind}.{self.realm}.{self.region if region is None else region}.{unique()}"

    def now(self):
        """The server's clock, which a test may put wrong."""
        return time.time() + self.clock_offset

    # Who may do what: everything is allowed that is not denied.

    def deny(self, principal, key=None, actions=None):
        with self._lock:
            self._denied.append((principal, key, frozenset(actions) if actions else None))

    def allow(self, principal, key=None):
        """Takes back what was denied: for that key only, or altogether."""
        with self._lock:
            self._denied = [d for d in self._denied if d[0] != principal or (key is not None and d[1] != key)]

    def authorize(self, principal, key, action):
        if principal.tenancy != self.tenancy:
            raise not_found("a principal of another tenancy")
        with self._lock:
            for who, which, actions in self._denied:
                if who == principal.name and which in (None, key) and (actions is None or action in actions):
                    raise not_found(f"{action} is denied")

    # The log.

    def record(self, entry):
        with self._lock:
            self._log.append(entry)

    def entries(self):
        with self._lock:
            return list(self._log)

    def forget(self):
        with self._lock:
            self._log.clear()
