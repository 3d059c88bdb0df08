//! The metrics of `api.md`.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::Registry,
};

use crate::provider::Observer;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReconcileLabels {
    kind: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KmsLabels {
    provider: &'static str,
    operation: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KmsDurationLabels {
    provider: &'static str,
    operation: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ObjectLabels {
    kind: &'static str,
    namespace: String,
    name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NotReadyLabels {
    kind: &'static str,
    reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NameLabels {
    namespace: String,
    name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CredentialLabels {
    provider: &'static str,
    source: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

/// The kind that most metrics speak of.
const SEAL_CONFIG: &str = "SealConfig";

/// How a SealConfig stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectState<'a> {
    /// It is Ready.
    pub ready: bool,
    /// The word of its Ready condition.
    pub reason: &'a str,
    /// Seals that do not work.
    pub seals_unhealthy: usize,
    /// The fewest copies that any of its keys has; `None` = it has no keys.
    pub key_copies_min: Option<usize>,
    /// The seals that every key should be wrapped under.
    pub seals_wrapping: usize,
    /// When the next rotation is due, in seconds of Unix time.
    pub rotation_due: Option<i64>,
    /// Servers that are sealed; `None` = it unseals none.
    pub pods_sealed: Option<u32>,
    /// Since when its wrapped store holds a root token, in seconds of Unix time; `None` = it holds none.
    pub root_token_since: Option<i64>,
}

/// Everything that is counted.
pub struct Metrics {
    registry: Registry,
    reconciles: Family<ReconcileLabels, Counter>,
    reconcile_seconds: Histogram,
    kms_requests: Family<KmsLabels, Counter>,
    kms_seconds: Family<KmsDurationLabels, Histogram>,
    ready: Family<ObjectLabels, Gauge>,
    not_ready: Family<NotReadyLabels, Gauge>,
    seals_unhealthy: Family<NameLabels, Gauge>,
    key_copies_min: Family<NameLabels, Gauge>,
    seals_wrapping: Family<NameLabels, Gauge>,
    rotation_due: Family<NameLabels, Gauge>,
    credential_expiry: Family<CredentialLabels, Gauge>,
    imds_probes: Family<ResultLabels, Counter>,
    leader: Gauge,
    pods_sealed: Family<NameLabels, Gauge>,
    root_token_since: Family<NameLabels, Gauge>,
    unseals: Family<OutcomeLabels, Counter>,
    unseal_seconds: Histogram,
    /// The reason of each object that is not ready, to count them.
    reasons: Mutex<HashMap<(&'static str, String, String), String>>,
}

fn seconds() -> Histogram {
    Histogram::new([
        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    ])
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Registers everything.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("autounseal");
        let metrics = Self {
            reconciles: Family::default(),
            reconcile_seconds: seconds(),
            kms_requests: Family::default(),
            kms_seconds: Family::new_with_constructor(seconds),
            ready: Family::default(),
            not_ready: Family::default(),
            seals_unhealthy: Family::default(),
            key_copies_min: Family::default(),
            seals_wrapping: Family::default(),
            rotation_due: Family::default(),
            credential_expiry: Family::default(),
            imds_probes: Family::default(),
            leader: Gauge::default(),
            pods_sealed: Family::default(),
            root_token_since: Family::default(),
            unseals: Family::default(),
            unseal_seconds: seconds(),
            reasons: Mutex::default(),
            registry: Registry::default(),
        };
        // The text format adds `_total` to counters by itself.
        registry.register("reconcile", "Reconciles, by outcome", metrics.reconciles.clone());
        registry.register(
            "reconcile_duration_seconds",
            "Time of a reconcile",
            metrics.reconcile_seconds.clone(),
        );
        registry.register(
            "kms_requests",
            "Requests to a KMS; outcome is ok or a reason",
            metrics.kms_requests.clone(),
        );
        registry.register(
            "imds_probe",
            "Probes of the instance metadata service, by what they found",
            metrics.imds_probes.clone(),
        );
        registry.register(
            "kms_request_duration_seconds",
            "Time of a request to a KMS",
            metrics.kms_seconds.clone(),
        );
        registry.register("ready", "1 when the object is Ready", metrics.ready.clone());
        registry.register(
            "not_ready",
            "Objects that are not Ready, by reason",
            metrics.not_ready.clone(),
        );
        registry.register(
            "seals_unhealthy",
            "Seals that do not work, by object",
            metrics.seals_unhealthy.clone(),
        );
        registry.register(
            "key_copies_min",
            "The fewest seals that any key of the object is wrapped under",
            metrics.key_copies_min.clone(),
        );
        registry.register(
            "seals_wrapping",
            "Enabled seals of the object that wrap keys: how many copies each key should have",
            metrics.seals_wrapping.clone(),
        );
        registry.register(
            "rotation_due_timestamp_seconds",
            "When the next rotation of a key of the object is due",
            metrics.rotation_due.clone(),
        );
        registry.register(
            "credential_expiry_timestamp_seconds",
            "When the credentials loaded last expire",
            metrics.credential_expiry.clone(),
        );
        registry.register(
            "leader",
            "1 when this replica acts, 0 when it stands by",
            metrics.leader.clone(),
        );
        registry.register(
            "pods_sealed",
            "Servers of the object that said that they are sealed",
            metrics.pods_sealed.clone(),
        );
        registry.register(
            "root_token_held_since_timestamp_seconds",
            "Since when the wrapped store of the object holds a root token",
            metrics.root_token_since.clone(),
        );
        registry.register(
            "unseal",
            "Attempts to unseal a server; outcome is ok or a reason",
            metrics.unseals.clone(),
        );
        registry.register(
            "unseal_duration_seconds",
            "Time from a server seen sealed to confirmed unsealed",
            metrics.unseal_seconds.clone(),
        );
        // Without a zero before it, Prometheus counts no first one.
        metrics
            .unseals
            .get_or_create(&OutcomeLabels { outcome: "ok" })
            .inc_by(0);
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "What this is", build);
        Self { registry, ..metrics }
    }

    /// This replica acts, or it does not.
    pub fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// One reconcile is done.
    pub fn reconciled(&self, kind: &'static str, ok: bool, took: Duration) {
        let outcome = if ok { "ok" } else { "error" };
        self.reconciles
            .get_or_create(&ReconcileLabels { kind, outcome })
            .inc();
        self.reconcile_seconds.observe(took.as_secs_f64());
    }

    /// A server was unsealed, or an attempt ended with this reason. `took`: since it was seen sealed.
    pub fn unsealed(&self, outcome: &'static str, took: Duration) {
        self.unseals.get_or_create(&OutcomeLabels { outcome }).inc();
        if outcome == "ok" {
            self.unseal_seconds.observe(took.as_secs_f64());
        }
    }

    /// How a SealConfig stands.
    pub fn object(&self, namespace: &str, name: &str, state: &ObjectState<'_>) {
        let names = NameLabels {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.readiness(SEAL_CONFIG, namespace, name, state.ready, state.reason);
        self.seals_unhealthy
            .get_or_create(&names)
            .set(count(state.seals_unhealthy));
        self.seals_wrapping
            .get_or_create(&names)
            .set(count(state.seals_wrapping));
        let optional = [
            (&self.key_copies_min, state.key_copies_min.map(count)),
            (&self.rotation_due, state.rotation_due),
            (&self.pods_sealed, state.pods_sealed.map(i64::from)),
            (&self.root_token_since, state.root_token_since),
        ];
        for (family, value) in optional {
            match value {
                Some(value) => {
                    family.get_or_create(&names).set(value);
                }
                None => {
                    family.remove(&names);
                }
            }
        }
    }

    /// Whether an object of any kind is Ready, and if not, why.
    pub fn readiness(&self, kind: &'static str, namespace: &str, name: &str, ready: bool, reason: &str) {
        let labels = ObjectLabels {
            kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        self.ready.get_or_create(&labels).set(i64::from(ready));
        self.count_reason(kind, namespace, name, (!ready).then_some(reason));
    }

    /// An object of any kind is gone, and nothing but its readiness was told.
    pub fn forget_readiness(&self, kind: &'static str, namespace: &str, name: &str) {
        self.ready.remove(&ObjectLabels {
            kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        });
        self.count_reason(kind, namespace, name, None);
    }

    /// A SealConfig is gone.
    pub fn forget(&self, namespace: &str, name: &str) {
        self.forget_readiness(SEAL_CONFIG, namespace, name);
        let names = NameLabels {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        for family in [
            &self.seals_unhealthy,
            &self.seals_wrapping,
            &self.key_copies_min,
            &self.rotation_due,
            &self.pods_sealed,
            &self.root_token_since,
        ] {
            family.remove(&names);
        }
    }

    fn count_reason(&self, kind: &'static str, namespace: &str, name: &str, reason: Option<&str>) {
        let gauge = |reason: &str| {
            let labels = NotReadyLabels {
                kind,
                reason: reason.to_owned(),
            };
            self.not_ready.get_or_create_owned(&labels)
        };
        let mut reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (kind, namespace.to_owned(), name.to_owned());
        let before = match reason {
            Some(reason) => reasons.insert(key, reason.to_owned()),
            None => reasons.remove(&key),
        };
        if before.as_deref() == reason {
            return;
        }
        if let Some(before) = before {
            gauge(&before).dec();
        }
        if let Some(reason) = reason {
            gauge(reason).inc();
        }
    }

    /// The text that Prometheus reads.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

impl Observer for Metrics {
    fn kms_request(
        &self,
        provider: &'static str,
        operation: &'static str,
        outcome: &'static str,
        seconds: f64,
    ) {
        self.kms_requests
            .get_or_create(&KmsLabels {
                provider,
                operation,
                outcome,
            })
            .inc();
        self.kms_seconds
            .get_or_create(&KmsDurationLabels { provider, operation })
            .observe(seconds);
    }

    fn imds_probe(&self, result: &'static str) {
        self.imds_probes.get_or_create(&ResultLabels { result }).inc();
    }

    fn credential_expiry(&self, provider: &'static str, source: &'static str, unix_seconds: i64) {
        self.credential_expiry
            .get_or_create(&CredentialLabels { provider, source })
            .set(unix_seconds);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_metrics_of_the_contract_are_there_under_their_names() {
        let metrics = Metrics::new();
        metrics.reconciled("SealConfig", true, Duration::from_millis(3));
        let denied = ObjectState {
            ready: false,
            reason: "AccessDenied",
            seals_unhealthy: 1,
            key_copies_min: Some(2),
            seals_wrapping: 3,
            rotation_due: Some(99),
            pods_sealed: Some(2),
            root_token_since: None,
        };
        let ready = ObjectState {
            ready: true,
            reason: "Ready",
            seals_unhealthy: 0,
            key_copies_min: None,
            seals_wrapping: 1,
            rotation_due: None,
            pods_sealed: None,
            root_token_since: None,
        };
        metrics.object("n", "a", &denied);
        metrics.object("n", "b", &denied);
        metrics.object("n", "b", &ready);
        metrics.kms_request("awskms", "Decrypt", "ok", 0.01);
        metrics.credential_expiry("awskms", "irsa", 42);
        metrics.imds_probe("available");
        for line in [
            "autounseal_leader 0\n",
            "autounseal_unseal_total{outcome=\"ok\"} 0\n",
        ] {
            assert!(metrics.text().contains(line), "{line}");
        }
        metrics.leads(true);
        let text = metrics.text();
        for line in [
            r#"autounseal_reconcile_total{kind="SealConfig",outcome="ok"} 1"#,
            r#"autounseal_ready{kind="SealConfig",namespace="n",name="a"} 0"#,
            r#"autounseal_not_ready{kind="SealConfig",reason="AccessDenied"} 1"#,
            r#"autounseal_seals_unhealthy{namespace="n",name="a"} 1"#,
            r#"autounseal_key_copies_min{namespace="n",name="a"} 2"#,
            r#"autounseal_seals_wrapping{namespace="n",name="a"} 3"#,
            r#"autounseal_rotation_due_timestamp_seconds{namespace="n",name="a"} 99"#,
            r#"autounseal_kms_requests_total{provider="awskms",operation="Decrypt",outcome="ok"} 1"#,
            r#"autounseal_credential_expiry_timestamp_seconds{provider="awskms",source="irsa"} 42"#,
            r#"autounseal_imds_probe_total{result="available"} 1"#,
            "autounseal_leader 1",
            "autounseal_build_info{",
            "autounseal_reconcile_duration_seconds_count 1",
            "autounseal_kms_request_duration_seconds_bucket{",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(
            !text.contains(r#"key_copies_min{namespace="n",name="b"}"#),
            "{text}"
        );
        // Of the same name, and told apart by their kind.
        metrics.readiness("ManagedKey", "n", "a", false, "KeyNotFound");
        metrics.forget("n", "a");
        let text = metrics.text();
        assert!(text.contains(r#"autounseal_ready{kind="ManagedKey",namespace="n",name="a"} 0"#));
        assert!(text.contains(r#"autounseal_not_ready{kind="ManagedKey",reason="KeyNotFound"} 1"#));
        metrics.forget_readiness("ManagedKey", "n", "a");
        assert!(!metrics.text().contains(r#"name="a""#));
        assert!(
            metrics
                .text()
                .contains(r#"autounseal_not_ready{kind="SealConfig",reason="AccessDenied"} 0"#)
        );
    }
}
