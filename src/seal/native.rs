//! Seals that pods ask themselves: what the operator's own look at them tells about the pods.

use kube::core::SelectorExt;

use super::{
    Fault,
    aws::{self, AwsSeal},
    model::{Cloud, Model, Seal},
    observed::PodFacts,
};
use crate::api::Reason;

/// The pods that are told of a seal, as far as targets select them.
fn readers<'a>(model: &Model, seal: &Seal, pods: &'a [PodFacts]) -> Vec<&'a PodFacts> {
    let selectors = || {
        model
            .targets
            .iter()
            .filter(|target| target.native.contains(&seal.name))
            .filter_map(|target| target.selector.as_ref())
    };
    pods.iter()
        .filter(|pod| !pod.leaving && selectors().any(|selector| selector.matches(&pod.labels)))
        .collect()
}

/// A fault of a seal, with what it means for the pods that ask the KMS themselves.
///
/// What keeps the operator from the metadata of its node keeps other pods of that node from it, too; but a pod on the host's
/// network is one hop nearer.
pub fn for_pods(model: &Model, seal: &Seal, mut fault: Fault, pods: &[PodFacts]) -> Fault {
    if !model.is_native(seal) {
        return fault;
    }
    let more = match fault.reason {
        Reason::ImdsHopLimitTooLow => hop_limit(&readers(model, seal, pods)),
        Reason::ImdsDisabled => "; pods on the same node that ask it themselves share this".to_owned(),
        Reason::ImdsUnreachable => {
            "; pods on the same node that ask it themselves share this, unless a network policy treats them otherwise"
                .to_owned()
        }
        _ => return fault,
    };
    fault.message.push_str(&more);
    fault
}

fn hop_limit(pods: &[&PodFacts]) -> String {
    let near: Vec<&str> = pods
        .iter()
        .filter(|pod| pod.host_network)
        .map(|pod| pod.name.as_str())
        .collect();
    let far = pods.len() - near.len();
    // Names of more pods than a person reads at once are left out.
    let some = |names: &[&str]| match names {
        [] | [_] | [_, _] | [_, _, _] => names.join(", "),
        [first, second, ..] => format!("{first}, {second} and {} more", names.len() - 2),
    };
    match (near.is_empty(), far) {
        (true, _) => {
            "; pods on the same node that ask it themselves share this, unless they use the host network"
                .to_owned()
        }
        (false, 0) => format!(
            "; this does not hold for the target's pods, which use the host network and are a hop nearer ({})",
            some(&near)
        ),
        (false, _) => format!(
            "; pods on the same node that ask it themselves share this, but for {} on the host network, a hop nearer",
            some(&near)
        ),
    }
}

/// What is known once the key was described and a random value was wrapped and opened.
pub fn proven(seal: &Seal) -> String {
    let what = "the key was described, and a random value was encrypted and decrypted";
    if seal.cloud.is_operators() {
        return format!(
            "{what}, by the operator's own identity, which stands only for pods that use the same one, such as that of its node"
        );
    }
    let whose = match &seal.cloud {
        Cloud::Aws(AwsSeal {
            credentials: aws::Credentials::ServiceAccount { name, .. },
            ..
        }) => format!("the identity of ServiceAccount {name}"),
        Cloud::Aws(_) | Cloud::Oci(_) => "the identity that the seal names".to_owned(),
    };
    format!("{what}, by {whose}")
}

/// A server asks to describe its key before anything else, so what is no fault for the operator is one for it.
pub fn must_describe(seal: &Seal) -> Fault {
    let right = match &seal.cloud {
        Cloud::Aws(_) => "kms:DescribeKey",
        Cloud::Oci(_) => "the permission KEY_READ (use keys)",
    };
    Fault::denied(
        Reason::AccessDenied,
        format!(
            "the identity may not describe the key, and a server that asks the KMS itself does so when it starts; grant it {right}"
        ),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::seal::model::parse;

    fn model(use_: &str) -> Model {
        let config = json!({
            "apiVersion": "autounseal.dev/v1alpha1", "kind": "SealConfig",
            "metadata": {"name": "x", "namespace": "x", "uid": "1"},
            "spec": {
                "seals": [{"name": "aws", "use": [use_], "awskms": {
                    "kmsKeyID": "alias/x", "region": "us-east-1", "credentials": {"instanceMetadata": {}}}},
                    {"name": "other", "awskms": {"kmsKeyID": "alias/x", "credentials": {"instanceMetadata": {}}}}],
                "targets": [{"name": "x", "podSelector": {"matchLabels": {"app": "vault"}}, "secret": {
                    "name": "x", "env": {"vault": {"seals": ["aws"]}}}}],
            },
        });
        parse(&serde_json::from_value(config).unwrap()).unwrap()
    }

    fn pod(name: &str, app: &str, host_network: bool) -> PodFacts {
        PodFacts {
            name: name.into(),
            labels: [("app".to_owned(), app.to_owned())].into(),
            host_network,
            ..PodFacts::default()
        }
    }

    fn told(seal: &str, reason: Reason, pods: &[PodFacts]) -> String {
        let model = model("Native");
        let seal = model.seal(seal).unwrap();
        for_pods(&model, seal, Fault::denied(reason, "found"), pods).message
    }

    #[test]
    fn a_seal_in_a_stanza_or_env_is_native_whatever_its_use() {
        for use_ in ["Native", "Wrap"] {
            let model = model(use_);
            assert!(model.is_native(model.seal("aws").unwrap()));
            assert!(!model.is_native(model.seal("other").unwrap()));
        }
    }

    #[test]
    fn the_hop_limit_is_shared_by_pods_of_the_node_but_not_on_the_hosts_network() {
        let hop = Reason::ImdsHopLimitTooLow;
        let unless = "found; pods on the same node that ask it themselves share this, unless they use the host network";
        assert_eq!(told("aws", hop, &[]), unless);
        // Pods of others tell nothing.
        assert_eq!(
            told("aws", hop, &[pod("a", "x", true), pod("b", "vault", false)]),
            unless
        );
        let near = [pod("a", "vault", true), pod("b", "vault", true)];
        assert_eq!(
            told("aws", hop, &near),
            "found; this does not hold for the target's pods, which use the host network and are a hop nearer (a, b)"
        );
        let mixed = [pod("a", "vault", true), pod("b", "vault", false)];
        assert_eq!(
            told("aws", hop, &mixed),
            "found; pods on the same node that ask it themselves share this, but for a on the host network, a hop nearer"
        );
    }

    #[test]
    fn other_faults_and_other_seals_are_told_as_they_are() {
        assert_eq!(told("other", Reason::ImdsHopLimitTooLow, &[]), "found");
        assert_eq!(told("aws", Reason::AccessDenied, &[]), "found");
        assert!(told("aws", Reason::ImdsDisabled, &[]).contains("share this"));
        assert!(told("aws", Reason::ImdsUnreachable, &[]).contains("share this"));
    }
}
