//! What people are told of the servers.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::watch::{PodRecord, Said};
use crate::{
    api::{Reason, UnsealStatus},
    seal::Fault,
};

/// From the one that most needs a person to the one that passes.
const ORDER: [Reason; 12] = [
    Reason::InitResponseNotStored,
    Reason::InitResponseLost,
    Reason::AlreadyInitializedElsewhere,
    Reason::PodContested,
    Reason::TargetNotVerified,
    Reason::UnsealRejected,
    Reason::UnsealKeysMissing,
    Reason::Migrating,
    Reason::NotInitialized,
    Reason::Sealed,
    Reason::TargetUnreachable,
    Reason::RootTokenHeld,
];

/// What is remembered beside the pods.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// How the cluster was called when it was first seen unsealed, and the digest of the shares then.
    pub cluster: Option<(String, String)>,
    /// The digest of the shares now.
    pub shares: String,
    /// Since when a root token is held.
    pub token_since: Option<Timestamp>,
}

/// How the unsealed servers call their cluster.
pub fn cluster(pods: &[PodRecord]) -> Option<String> {
    let looks = pods.iter().filter_map(|pod| pod.look.as_ref());
    looks
        .filter(|look| look.said == Some(Said::Unsealed) && look.fault.is_none())
        .find_map(|look| look.cluster.clone())
}

/// The status of the servers.
pub fn status(pods: &[PodRecord], known: Known) -> UnsealStatus {
    let said = |pod: &PodRecord| pod.look.as_ref().and_then(|look| look.said);
    let answers: Vec<Said> = pods.iter().filter_map(said).collect();
    let sealed = answers.iter().filter(|said| **said == Said::Sealed).count();
    // Other shares, another cluster.
    let before = known.cluster.filter(|(_, of)| *of == known.shares);
    let cluster_id = before.map(|(id, _)| id).or_else(|| cluster(pods));
    UnsealStatus {
        shares_digest: cluster_id.is_some().then_some(known.shares),
        cluster_id,
        root_token_held_since: known
            .token_since
            .map(|at| Time(Timestamp::from_second(at.as_second()).unwrap_or(at))),
        initialized: (!answers.is_empty()).then(|| !answers.contains(&Said::NotInitialized)),
        sealed: u32::try_from(sealed).unwrap_or(u32::MAX),
        pods: pods.iter().map(PodRecord::status).collect(),
    }
}

/// Why a server is not unsealed, the gravest first; `None`: none is known to be sealed.
pub fn fault(pods: &[PodRecord]) -> Option<Fault> {
    let faults = pods.iter().filter_map(|pod| {
        let fault = pod.look.as_ref()?.fault.clone()?;
        Some(fault.of(format_args!("pod {}", pod.name)))
    });
    let rank = |fault: &Fault| {
        let known = ORDER.iter().position(|reason| *reason == fault.reason);
        // What is wrong with a seal comes before that its servers are sealed.
        known.unwrap_or(5)
    };
    faults.min_by_key(rank)
}

/// Which servers run and are between two seals still.
pub fn migrating(pods: &[PodRecord]) -> Vec<&str> {
    pods.iter()
        .filter(|pod| pod.look.as_ref().is_some_and(|look| look.migrating))
        .map(|pod| pod.name.as_str())
        .collect()
}

/// Whether every server was looked at.
pub fn all_seen(pods: &[PodRecord]) -> bool {
    pods.iter().all(|pod| {
        pod.look
            .as_ref()
            .is_some_and(|look| look.said == Some(Said::Unsealed))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::unseal::watch::Look;

    fn pod(name: &str, said: Option<Said>, reason: Option<Reason>) -> PodRecord {
        PodRecord {
            name: name.into(),
            look: Some(Look {
                said,
                fault: reason.map(|reason| Fault::denied(reason, "why")),
                ..Look::default()
            }),
            ..PodRecord::default()
        }
    }

    #[test]
    fn the_gravest_fault_is_told_with_its_pod() {
        let pods = [
            pod("a", None, Some(Reason::TargetUnreachable)),
            pod("b", Some(Said::Sealed), Some(Reason::UnsealRejected)),
            pod("c", Some(Said::Unsealed), None),
        ];
        let fault = fault(&pods).unwrap();
        assert_eq!(
            (fault.reason, fault.message.as_str()),
            (Reason::UnsealRejected, "pod b: why")
        );
        assert!(!all_seen(&pods) && all_seen(&pods[2..]));
    }

    #[test]
    fn servers_that_migrate_are_named() {
        let mut pods = [
            pod("a", Some(Said::Unsealed), None),
            pod("b", Some(Said::Unsealed), None),
        ];
        assert!(migrating(&pods).is_empty());
        pods[1].look.as_mut().unwrap().migrating = true;
        assert_eq!(migrating(&pods), ["b"]);
    }

    #[test]
    fn servers_are_counted_by_what_they_said() {
        let pods = [
            pod("a", Some(Said::Sealed), Some(Reason::Sealed)),
            pod("b", Some(Said::Unsealed), None),
            pod("c", None, Some(Reason::TargetUnreachable)),
        ];
        let told = status(&pods, Known::default());
        assert_eq!(
            (told.initialized, told.sealed, told.pods.len()),
            (Some(true), 1, 3)
        );
        let raw = [pod("a", Some(Said::NotInitialized), Some(Reason::NotInitialized))];
        assert_eq!(status(&raw, Known::default()).initialized, Some(false));
        assert_eq!(status(&[], Known::default()).initialized, None);
    }

    #[test]
    fn a_cluster_is_remembered_as_long_as_its_shares_are_the_same() {
        let mut pods = [pod("a", Some(Said::Unsealed), None)];
        pods[0].look.as_mut().unwrap().cluster = Some("now".into());
        let told = |shares: &str| {
            let known = Known {
                cluster: Some(("then".into(), "s1".into())),
                shares: shares.into(),
                token_since: None,
            };
            let status = status(&pods, known);
            (status.cluster_id.unwrap(), status.shares_digest.unwrap())
        };
        assert_eq!(told("s1"), ("then".into(), "s1".into()));
        assert_eq!(told("s2"), ("now".into(), "s2".into()));
        assert_eq!(status(&[], Known::default()).shares_digest, None);
    }
}
