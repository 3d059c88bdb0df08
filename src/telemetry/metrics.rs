//! The metrics of `api.md`.

use std::time::Duration;

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::Registry,
};

use super::objects::Objects;
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

/// Everything that is counted.
pub struct Metrics {
    registry: Registry,
    reconciles: Family<ReconcileLabels, Counter>,
    reconcile_seconds: Histogram,
    kms_requests: Family<KmsLabels, Counter>,
    kms_seconds: Family<KmsDurationLabels, Histogram>,
    credential_expiry: Family<CredentialLabels, Gauge>,
    imds_probes: Family<ResultLabels, Counter>,
    leader: Gauge,
    unseals: Family<OutcomeLabels, Counter>,
    unseal_seconds: Histogram,
    /// How each object stands.
    pub objects: Objects,
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
            credential_expiry: Family::default(),
            imds_probes: Family::default(),
            leader: Gauge::default(),
            unseals: Family::default(),
            unseal_seconds: seconds(),
            objects: Objects::default(),
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
            "unseal",
            "Attempts to unseal a server; outcome is ok or a reason",
            metrics.unseals.clone(),
        );
        registry.register(
            "unseal_duration_seconds",
            "Time from a server seen sealed to confirmed unsealed",
            metrics.unseal_seconds.clone(),
        );
        registry.register_collector(Box::new(metrics.objects.clone()));
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
    use super::{
        super::objects::{Figures, ObjectState},
        *,
    };

    #[test]
    fn the_metrics_of_the_contract_are_there_under_their_names() {
        let metrics = Metrics::new();
        metrics.reconciled("SealConfig", true, Duration::from_millis(3));
        let denied = ObjectState {
            ready: false,
            reason: "AccessDenied",
            figures: Figures {
                seals_unhealthy: 1,
                key_copies_min: Some(2),
                seals_wrapping: 3,
                rotation_due: Some(99),
                pods_sealed: Some(2),
                root_token_since: None,
            },
        };
        let ready = ObjectState {
            ready: true,
            reason: "Ready",
            figures: Figures {
                seals_unhealthy: 0,
                key_copies_min: None,
                seals_wrapping: 1,
                rotation_due: None,
                pods_sealed: None,
                root_token_since: None,
            },
        };
        metrics.objects.seal_config("n", "a", &denied);
        metrics.objects.seal_config("n", "b", &denied);
        metrics.objects.seal_config("n", "b", &ready);
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
        metrics
            .objects
            .readiness("ManagedKey", "n", "a", false, "KeyNotFound");
        metrics.objects.forget_seal_config("n", "a");
        let text = metrics.text();
        assert!(text.contains(r#"autounseal_ready{kind="ManagedKey",namespace="n",name="a"} 0"#));
        assert!(text.contains(r#"autounseal_not_ready{kind="ManagedKey",reason="KeyNotFound"} 1"#));
        metrics.objects.forget("ManagedKey", "n", "a");
        assert!(!metrics.text().contains(r#"name="a""#));
        assert!(
            metrics
                .text()
                .contains(r#"autounseal_not_ready{kind="SealConfig",reason="AccessDenied"} 0"#)
        );
    }
}
