//! Whether the shares of a set are replaced now, and how it goes on (security rule S11): only under the name that the
//! server gave our own attempt, and the old shares are in use until the server has taken the new ones.

use serde::Deserialize;

use super::{exchange::SealState, initialize::Split};
use crate::{
    api::{Reason, UnsealProduct},
    seal::{Fault, store::rekey::Rekey},
};

/// What `sys/rekey/init` says of a rekey (Vault API docs `system/rekey`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Going {
    /// One is in progress.
    #[serde(default)]
    pub started: bool,
    /// Its name.
    #[serde(default)]
    pub nonce: String,
    /// Old shares that it takes.
    #[serde(default)]
    pub required: usize,
    /// The name of the verification, once the new shares were answered.
    #[serde(default)]
    pub verification_nonce: String,
}

impl Going {
    /// The attempt's name, if it is one that can be written into a request: a UUID.
    pub fn name(&self) -> Option<&str> {
        is_uuid(&self.nonce).then_some(&self.nonce)
    }

    /// The verification's name, if there is one.
    pub fn verification(&self) -> Option<&str> {
        is_uuid(&self.verification_nonce).then_some(&self.verification_nonce)
    }
}

/// Whether a text of a server's has the form of the names that it gives.
pub fn is_uuid(text: &str) -> bool {
    text.len() == 36 && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing is asked for, and nothing was left.
    Nothing,
    /// What was left behind by an attempt that asked the server for nothing is forgotten.
    Forget,
    /// Somebody else is at it.
    Foreign,
    /// Our own attempt is ended: what it answered is not ours to use any more.
    Cancel,
    /// The new shares are stored, and the server waits for them.
    Verify,
    /// The server is asked for new shares, for this value of the annotation.
    Begin(String),
}

/// Decides it. `wanted`: the annotation's value; `acted_on`: the one that the newest set is of; `held`: what the store
/// holds of an attempt; `going`: what the server says.
pub fn step(wanted: Option<&str>, acted_on: Option<&str>, held: Option<&Rekey>, going: &Going) -> Step {
    let ours = held.and_then(|held| held.nonce.as_deref());
    if going.started {
        return match (held, ours) {
            (Some(held), Some(nonce)) if nonce == going.nonce => {
                if held.is_pending() && !held.settles && going.verification().is_some() {
                    Step::Verify
                } else {
                    Step::Cancel
                }
            }
            (None, _) if wanted.is_none() || wanted == acted_on => Step::Nothing,
            _ => Step::Foreign,
        };
    }
    let wanted = wanted.filter(|wanted| Some(*wanted) != acted_on);
    match (wanted, held) {
        (Some(wanted), _) => Step::Begin(wanted.to_owned()),
        // Whether the server has taken the new shares is found out by asking for more.
        (None, Some(held)) if held.is_pending() => Step::Begin(held.value.clone()),
        (None, Some(_)) => Step::Forget,
        (None, None) => Step::Nothing,
    }
}

/// Into how many shares the key of this server is split anew.
///
/// # Errors
/// `InvalidSpec`: the shares that are held are not the operator's to replace.
pub fn split(shamir: Option<Split>, state: &SealState, is_set: bool) -> Result<Split, Fault> {
    let invalid = |why: &str| {
        Err(Fault::invalid_spec(format!(
            "the annotation {} asks for new shares, and {why}; take the annotation away",
            crate::seal::model::ROTATE_SHARES
        )))
    };
    if state.is_native() {
        return invalid(
            "the server has a native seal, whose recovery keys are replaced by hand (`operator rekey -target=recovery`)",
        );
    }
    if !is_set {
        return invalid(
            "the shares that are in use were not answered to the operator, which replaces only what it keeps (`operator rekey` \
             and bring the new ones)",
        );
    }
    match shamir {
        Some(split) => Ok(split),
        None => invalid("initialize.shamir does not say how many; or set it"),
    }
}

/// Whether every other selected server is unsealed and of this cluster; `None` = it has not answered. Until then nothing is
/// asked, and why one is not is told of that one.
pub fn all_well(cluster: &str, others: &[Option<SealState>]) -> bool {
    others.iter().all(|other| is_well(cluster, other.as_ref()))
}

/// Whether any other selected server is unsealed and of this cluster.
pub fn one_well(cluster: &str, others: &[Option<SealState>]) -> bool {
    others.iter().any(|other| is_well(cluster, other.as_ref()))
}

fn is_well(cluster: &str, state: Option<&SealState>) -> bool {
    state.is_some_and(|state| state.initialized && !state.sealed && state.cluster() == Some(cluster))
}

/// Somebody else's rekey.
pub fn foreign() -> Fault {
    rejected(
        "the annotation asks for new shares, and the server is in a rekey that is not known to be the operator's, so it gets \
         no share for it, and it is not cancelled; finish it, or cancel it (`operator rekey -cancel`), and the operator goes on"
            .into(),
    )
}

/// The server does not let its shares be replaced.
pub fn disabled(product: UnsealProduct, status: u16) -> Fault {
    let fix = match product {
        UnsealProduct::OpenBao => {
            "OpenBao 2.5 and later do so unless its listener block says `disable_unauthed_rekey_endpoints = false`; set that \
             and restart it"
        }
        UnsealProduct::Vault => {
            "does a proxy stand before it, or does its version not know sys/rekey without a token?"
        }
    };
    rejected(format!(
        "the annotation asks for new shares, and the server refuses sys/rekey (status {status}): {fix}, or take the annotation \
         away; the shares that are there stay in use"
    ))
}

/// The server took neither set.
pub fn refused(status: u16) -> Fault {
    rejected(format!(
        "the annotation asks for new shares, and the server did not take the old ones (status {status}); the attempt is \
         cancelled and nothing has changed. See the server's log; were its shares replaced by somebody else?"
    ))
}

/// The server takes neither the shares in use nor those that wait, though it is in the attempt to find that out.
pub fn neither(status: u16) -> Fault {
    rejected(format!(
        "the server was asked to take new shares, and now takes neither those nor the ones in use (status {status}): it may \
         have died between its writes. It is unsealed as long as it runs, so restart no server of this cluster: take a \
         snapshot or copy its data out, then go back to the snapshot of before the rotation; both sets stay stored"
    ))
}

/// The server answered something else than it should.
pub fn strange(what: &str) -> Fault {
    Fault::transient(
        Reason::TargetUnreachable,
        format!(
            "the annotation asks for new shares, and the server {what}; the shares that are there stay in use, and it is asked \
             again"
        ),
    )
}

fn rejected(message: String) -> Fault {
    Fault::denied(Reason::UnsealRejected, message)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jiff::Timestamp;

    use super::*;
    use crate::seal::store::Version;

    const NONCE: &str = "2dbd10f1-8528-6246-09e7-82b25b8aba63";
    const OTHER: &str = "aaaaaaaa-8528-6246-09e7-82b25b8aba63";

    fn held(nonce: Option<&str>, pending: bool) -> Rekey {
        let version = Version {
            created: Timestamp::UNIX_EPOCH,
            check_value: None,
            copies: BTreeMap::new(),
            former: BTreeMap::new(),
            exposed: std::collections::BTreeSet::new(),
            init: None,
        };
        Rekey {
            id: "x".into(),
            pod: "vault-0".into(),
            value: "one".into(),
            set: 2,
            at: Timestamp::UNIX_EPOCH,
            nonce: nonce.map(Into::into),
            settles: false,
            threshold: 2,
            pending: if pending {
                [("share.1".to_owned(), version)].into()
            } else {
                BTreeMap::new()
            },
        }
    }

    fn going(nonce: &str, verifies: bool) -> Going {
        Going {
            started: true,
            nonce: nonce.into(),
            required: 2,
            verification_nonce: if verifies { OTHER.into() } else { String::new() },
        }
    }

    #[test]
    fn each_new_value_makes_one_rotation() {
        let none = Going::default();
        let begin = |value: &str| Step::Begin(value.to_owned());
        assert_eq!(step(None, None, None, &none), Step::Nothing);
        assert_eq!(step(Some("one"), None, None, &none), begin("one"));
        assert_eq!(step(Some("one"), Some("one"), None, &none), Step::Nothing);
        assert_eq!(step(Some("two"), Some("one"), None, &none), begin("two"));
        assert_eq!(step(None, Some("one"), None, &none), Step::Nothing);
    }

    #[test]
    fn a_rekey_of_somebody_else_is_never_gone_on_with_and_never_cancelled() {
        for held in [
            None,
            Some(held(None, false)),
            Some(held(Some(NONCE), false)),
            Some(held(Some(NONCE), true)),
        ] {
            for verifies in [false, true] {
                let step = step(Some("one"), None, held.as_ref(), &going(OTHER, verifies));
                assert_eq!(step, Step::Foreign, "{held:?}");
            }
        }
        // It is nobody's business when nothing is asked for.
        assert_eq!(step(None, None, None, &going(OTHER, false)), Step::Nothing);
        assert_eq!(
            step(Some("one"), Some("one"), None, &going(OTHER, false)),
            Step::Nothing
        );
    }

    #[test]
    fn our_own_attempt_is_verified_when_its_answer_is_stored_and_else_cancelled() {
        for wanted in [None, Some("one"), Some("two")] {
            let step = |pending, verifies| {
                step(
                    wanted,
                    None,
                    Some(&held(Some(NONCE), pending)),
                    &going(NONCE, verifies),
                )
            };
            assert_eq!(step(true, true), Step::Verify);
            assert_eq!(step(true, false), Step::Cancel);
            assert_eq!(step(false, true), Step::Cancel);
            assert_eq!(step(false, false), Step::Cancel);
        }
        // One that only found out which shares are the server's.
        let settling = Rekey {
            settles: true,
            ..held(Some(NONCE), true)
        };
        for verifies in [false, true] {
            let step = step(Some("one"), None, Some(&settling), &going(NONCE, verifies));
            assert_eq!(step, Step::Cancel);
        }
    }

    #[test]
    fn what_was_left_is_begun_again_or_forgotten() {
        let none = Going::default();
        let begin = |value: &str| Step::Begin(value.to_owned());
        for nonce in [None, Some(NONCE)] {
            assert_eq!(
                step(Some("one"), None, Some(&held(nonce, false)), &none),
                begin("one")
            );
            assert_eq!(step(None, None, Some(&held(nonce, false)), &none), Step::Forget);
        }
        // Shares that wait are not forgotten, whatever the annotation says now.
        assert_eq!(
            step(None, None, Some(&held(Some(NONCE), true)), &none),
            begin("one")
        );
        assert_eq!(
            step(Some("two"), None, Some(&held(Some(NONCE), true)), &none),
            begin("two")
        );
    }

    #[test]
    fn only_names_of_their_form_are_believed() {
        assert_eq!(going(NONCE, true).name(), Some(NONCE));
        for bad in ["", "x\",\"key\":\"", &"g".repeat(36)] {
            assert_eq!(going(bad, false).name(), None);
        }
        assert_eq!(going(NONCE, false).verification(), None);
    }

    fn state(cluster: &str) -> SealState {
        SealState::read(
            format!(
                r#"{{"initialized":true,"sealed":false,"t":2,"type":"shamir","cluster_id":"{cluster}"}}"#
            )
            .as_bytes(),
        )
        .unwrap()
    }

    #[test]
    fn every_server_is_unsealed_and_of_the_cluster_first() {
        let well = |others: &[Option<SealState>]| all_well(NONCE, others);
        let one = |others: &[Option<SealState>]| one_well(NONCE, others);
        assert!(well(&[]) && well(&[Some(state(NONCE))]));
        assert!(!one(&[]) && !one(&[None, Some(state(OTHER))]));
        let sealed = SealState {
            sealed: true,
            ..state(NONCE)
        };
        for bad in [None, Some(sealed), Some(state(OTHER))] {
            assert!(!one(std::slice::from_ref(&bad)));
            let both = [Some(state(NONCE)), bad];
            assert!(!well(&both) && one(&both));
        }
    }

    #[test]
    fn only_shares_that_the_operator_keeps_are_replaced() {
        let shamir = Some(Split {
            shares: 5,
            threshold: 3,
        });
        assert_eq!(split(shamir, &state(NONCE), true).ok(), shamir);
        let native = SealState {
            recovery_seal: true,
            ..state(NONCE)
        };
        for fault in [
            split(shamir, &native, true),
            split(shamir, &state(NONCE), false),
            split(None, &state(NONCE), true),
        ] {
            assert_eq!(fault.unwrap_err().reason, Reason::InvalidSpec);
        }
    }

    #[test]
    fn a_refusal_names_its_fix() {
        let told = disabled(UnsealProduct::OpenBao, 404).message;
        assert!(
            told.contains("disable_unauthed_rekey_endpoints = false"),
            "{told}"
        );
    }
}
