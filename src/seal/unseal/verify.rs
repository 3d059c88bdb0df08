//! Whom shares are sent to (security rule S10), as far as it is decided without speaking to the server.

use super::{Place, Transport, Unseal};
use crate::{
    api::Reason,
    seal::{Fault, observed::PodFacts},
};

/// What the operator's flags allow.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allowed {
    /// The namespace is one of `--insecure-unseal-namespaces`.
    pub insecure: bool,
    /// `--unseal-allow-loopback`.
    pub loopback: bool,
}

/// Whether a server may be spoken to at all. `forbidden`: the address is one at which no pod lives.
///
/// # Errors
/// `TargetNotVerified`.
pub fn may_speak(
    unseal: &Unseal,
    place: &Place,
    namespace: &str,
    forbidden: bool,
    allowed: Allowed,
) -> Result<(), Fault> {
    if unseal.transport == Transport::Plain && !allowed.insecure {
        return Err(not_verified(format!(
            "scheme: http proves nothing about who listens, and namespace {namespace} is not in the operator's \
             --insecure-unseal-namespaces; serve TLS and set scheme: https with tls.ca"
        )));
    }
    if forbidden && !allowed.loopback {
        return Err(not_verified(format!(
            "the pod's address {} is a loopback, link-local or multicast one, where no pod is; find out who wrote it \
             into the pod's status",
            place.ip
        )));
    }
    Ok(())
}

/// Whether the pod that the apiserver tells of now is the one that was connected to.
///
/// # Errors
/// `TargetNotVerified`.
pub fn still_there(unseal: &Unseal, uid: &str, place: &Place, now: Option<&PodFacts>) -> Result<(), Fault> {
    let same = now.is_some_and(|now| {
        now.uid == uid && unseal.selects(now) && unseal.place(now).as_ref() == Some(place)
    });
    if same {
        return Ok(());
    }
    Err(Fault::transient(
        Reason::TargetNotVerified,
        "the pod went, restarted or changed its address while it was asked, so it got no share; it is looked at again",
    ))
}

fn not_verified(message: String) -> Fault {
    Fault::denied(Reason::TargetNotVerified, message)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::seal::unseal::tests::{parsed, pod};

    #[test]
    fn http_needs_the_operators_flag() {
        let plain = parsed(&[("scheme", json!("http")), ("tls", Value::Null)]).unwrap();
        let place = plain.place(&pod()).unwrap();
        let speak = |insecure| {
            let allowed = Allowed {
                insecure,
                loopback: false,
            };
            may_speak(&plain, &place, "n", false, allowed)
        };
        assert_eq!(speak(false).unwrap_err().reason, Reason::TargetNotVerified);
        speak(true).unwrap();
    }

    #[test]
    fn addresses_where_no_pod_is_need_the_operators_flag() {
        let unseal = parsed(&[]).unwrap();
        let place = unseal.place(&pod()).unwrap();
        let speak = |loopback| {
            let allowed = Allowed {
                insecure: false,
                loopback,
            };
            may_speak(&unseal, &place, "n", true, allowed)
        };
        assert_eq!(speak(false).unwrap_err().reason, Reason::TargetNotVerified);
        speak(true).unwrap();
    }

    #[test]
    fn only_the_very_pod_gets_shares() {
        let unseal = parsed(&[]).unwrap();
        let place = unseal.place(&pod()).unwrap();
        still_there(&unseal, "u", &place, Some(&pod())).unwrap();
        let other = |change: fn(&mut crate::seal::observed::PodFacts)| {
            let mut pod = pod();
            change(&mut pod);
            still_there(&unseal, "u", &place, Some(&pod)).unwrap_err()
        };
        let gone = still_there(&unseal, "u", &place, None).unwrap_err();
        for fault in [
            gone,
            other(|pod| pod.uid = "other".into()),
            other(|pod| pod.ip = Some("10.0.0.8".parse().unwrap())),
            other(|pod| pod.containers[1].id = Some("c2".into())),
            other(|pod| pod.ip = None),
            other(|pod| pod.leaving = true),
            other(|pod| pod.labels.clear()),
        ] {
            assert_eq!(fault.reason, Reason::TargetNotVerified);
        }
    }
}
