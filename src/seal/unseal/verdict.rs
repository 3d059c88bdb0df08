//! What people are told of the servers.

use super::watch::{PodRecord, Said};
use crate::{
    api::{Reason, UnsealStatus},
    seal::Fault,
};

/// From the one that most needs a person to the one that passes.
const ORDER: [Reason; 8] = [
    Reason::PodContested,
    Reason::TargetNotVerified,
    Reason::UnsealRejected,
    Reason::UnsealKeysMissing,
    Reason::Migrating,
    Reason::NotInitialized,
    Reason::Sealed,
    Reason::TargetUnreachable,
];

/// The status of the servers.
pub fn status(pods: &[PodRecord]) -> UnsealStatus {
    let said = |pod: &PodRecord| pod.look.as_ref().and_then(|look| look.said);
    let answers: Vec<Said> = pods.iter().filter_map(said).collect();
    let sealed = answers.iter().filter(|said| **said == Said::Sealed).count();
    UnsealStatus {
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
        known.unwrap_or(2)
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
        let told = status(&pods);
        assert_eq!(
            (told.initialized, told.sealed, told.pods.len()),
            (Some(true), 1, 3)
        );
        let raw = [pod("a", Some(Said::NotInitialized), Some(Reason::NotInitialized))];
        assert_eq!(status(&raw).initialized, Some(false));
        assert_eq!(status(&[]).initialized, None);
    }
}
