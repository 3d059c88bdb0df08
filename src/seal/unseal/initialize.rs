//! Whether a server is initialised now, and how (security rule S11). It is the one thing that cannot be done again: in
//! doubt, nothing is done.

use super::exchange::SealState;
use crate::{
    api::{InitializeSpec, Reason, RootTokenPolicy, SharesSpec},
    seal::{Fault, model::Model, store::sets::Held},
};

/// `unseal.initialize`, parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Initialize {
    /// For a server that takes unseal shares.
    pub shamir: Option<Split>,
    /// For a server with a native seal.
    pub recovery: Option<Split>,
    /// The root token is kept, and not revoked.
    pub keep_token: bool,
}

/// Into how many shares a key is split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// Shares that are made.
    pub shares: u8,
    /// Shares that it takes.
    pub threshold: u8,
}

impl Initialize {
    /// Parses it.
    ///
    /// # Errors
    /// `InvalidSpec`: what the schema refuses, where it came around it.
    pub fn parse(spec: &InitializeSpec) -> Result<Self, Fault> {
        let split = |spec: SharesSpec| {
            let SharesSpec { shares, threshold } = spec;
            if shares == 0 || threshold == 0 || threshold > shares || (shares > 1 && threshold < 2) {
                return Err(Fault::invalid_spec(
                    "initialize: threshold is at most shares, and at least 2 when there are several shares",
                ));
            }
            Ok(Split { shares, threshold })
        };
        if spec.shamir.is_none() && spec.recovery.is_none() {
            return Err(Fault::invalid_spec("initialize takes shamir, recovery, or both"));
        }
        Ok(Self {
            shamir: spec.shamir.map(split).transpose()?,
            recovery: spec.recovery.map(split).transpose()?,
            keep_token: spec.root_token == RootTokenPolicy::Wrap,
        })
    }

    /// What a server is asked for, by what it says of its seal.
    ///
    /// # Errors
    /// The member is missing that its seal needs.
    pub fn ask(&self, state: &SealState) -> Result<Ask, Fault> {
        let native = state.is_native();
        let (split, member, seal) = if native {
            (self.recovery, "recovery", "has a native seal")
        } else {
            (self.shamir, "shamir", "has no native seal")
        };
        let split = split.ok_or_else(|| {
            Fault::denied(
                Reason::NotInitialized,
                format!(
                    "it is not initialised and {seal}, and initialize has no member {member}; add initialize.{member} with \
                     shares and threshold, or correct the server's seal"
                ),
            )
        })?;
        Ok(Ask { native, split })
    }
}

/// What a server is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Shares of a recovery key, and not of the unseal key.
    pub native: bool,
    /// How many.
    pub split: Split,
}

impl Ask {
    /// The body of the request (Vault API `sys/init`).
    pub fn body(&self) -> Vec<u8> {
        let family = if self.native { "recovery" } else { "secret" };
        let Split { shares, threshold } = self.split;
        format!("{{\"{family}_shares\":{shares},\"{family}_threshold\":{threshold}}}").into_bytes()
    }
}

/// What is known of another pod of the set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Other {
    /// Its name.
    pub pod: String,
    /// Whether it is initialised; `None` = it has not answered.
    pub initialized: Option<bool>,
}

/// Whether a server that says it is not initialised is initialised now. `others`: every other selected pod, as it
/// answered in this term.
///
/// # Errors
/// Why not.
pub fn turn(
    initialize: Option<&Initialize>,
    held: &Held,
    pod: &str,
    others: &[Other],
) -> Result<Initialize, Fault> {
    let waits = |message: String| Err(Fault::transient(Reason::NotInitialized, message));
    let stays = |reason: Reason, message: String| Err(Fault::denied(reason, message));
    if let Some(other) = others.iter().find(|other| other.initialized == Some(true)) {
        return stays(
            Reason::NotInitialized,
            format!(
                "it is not initialised, and pod {} of the same set is; let it join that one's cluster (retry_join), or see its \
                 log for why it does not",
                other.pod
            ),
        );
    }
    let silent = others.iter().find(|other| other.initialized.is_none());
    match (held, silent) {
        (Held::Set | Held::Marker(_), Some(other)) => {
            return waits(format!(
                "it is not initialised, and pod {} has not said yet whether it is; make that one answer",
                other.pod
            ));
        }
        (Held::Set, None) => {
            return stays(
                Reason::AlreadyInitializedElsewhere,
                "it says that it was never initialised, and the wrapped store holds what a server of this SealConfig answered \
                 before: was its volume lost or swapped? Bring the volume back from a backup; if the data is to be given up, \
                 run `autounseal forget-init`, which keeps the old shares beside the new ones"
                    .into(),
            );
        }
        (Held::Marker(marker), None) => return Err(lost(&marker.pod, false)),
        (Held::Unknown(fault), _) if initialize.is_some() => return Err(fault.clone()),
        (Held::Nothing | Held::Unknown(_), _) => {}
    }
    let Some(initialize) = initialize else {
        return stays(
            Reason::NotInitialized,
            "it is not initialised, and unseal.initialize is not set; set it, or run `operator init` there (or join it to \
             its cluster) and bring the shares as keys of purpose unseal-share"
                .into(),
        );
    };
    if let Some(first) = others
        .iter()
        .map(|other| &other.pod)
        .min()
        .filter(|first| first.as_str() < pod)
    {
        return waits(format!(
            "it is not initialised; pod {first} is initialised first, and this one then joins it"
        ));
    }
    if let Some(other) = silent {
        return waits(format!(
            "it is not initialised, and nothing is before every selected pod has said that it is not: pod {} has not \
             answered; make it run and answer, or narrow podSelector",
            other.pod
        ));
    }
    Ok(*initialize)
}

/// Holds that a SealConfig that initialises servers brings no shares: those are of a server that was initialised already.
///
/// # Errors
/// `AlreadyInitializedElsewhere`.
pub fn brings_none(model: &Model, initialize: Option<&Initialize>) -> Result<(), Fault> {
    let brought = model.keys.iter().find(|key| key.is_share() && !key.is_answer());
    match brought.filter(|_| initialize.is_some()) {
        None => Ok(()),
        Some(key) => Err(Fault::denied(
            Reason::AlreadyInitializedElsewhere,
            format!(
                "it says that it was never initialised, and key {:?} is a share of a server that was: was its volume lost or \
                 swapped? Bring the volume back, or take the shares out of spec.keys if that server is given up",
                key.name
            ),
        )),
    }
}

/// A marker stands, and no set. `initialized`: what the server says.
pub fn lost(pod: &str, initialized: bool) -> Fault {
    let message = if initialized {
        format!(
            "a server was asked to initialise itself (pod {pod}) and is initialised, and the operator ended, or the connection \
             did, before the answer was stored: its shares or recovery keys and its root token are lost. As long as it holds \
             no data, delete its volumes, then run `autounseal forget-init`; else rekey it while it is unsealed"
        )
    } else {
        format!(
            "the operator wrote down that it initialises pod {pod}, and ended before it knew an answer; the server says that it \
             is not initialised, so nothing is lost: run `autounseal forget-init`, and it is tried again"
        )
    };
    Fault::denied(Reason::InitResponseLost, message)
}

/// A server was asked, and its answer is not stored yet.
pub fn not_stored(why: &Fault) -> Fault {
    Fault::transient(
        Reason::InitResponseNotStored,
        format!(
            "the server was initialised, and what it answered lies in the operator's memory only; it is stored as soon as \
             that works: do not end the operator's process. What stands in the way: {} ({})",
            why.message, why.reason
        ),
    )
}

/// It is being initialised right now.
pub fn under_way() -> Fault {
    Fault::transient(
        Reason::NotInitialized,
        "it is being initialised; it is unsealed when everything that it answers is stored",
    )
}

/// It was initialised a moment ago.
pub fn just_done() -> Fault {
    Fault::transient(
        Reason::Sealed,
        "it was initialised a moment ago, and its shares are stored; it is unsealed with them now",
    )
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::seal::store::sets::Marker;

    fn parse(spec: serde_json::Value) -> Result<Initialize, Fault> {
        Initialize::parse(&serde_json::from_value(spec).unwrap())
    }

    fn both() -> Initialize {
        parse(json!({"shamir": {"shares": 5, "threshold": 3}, "recovery": {"shares": 1, "threshold": 1}}))
            .unwrap()
    }

    fn marker() -> Held {
        Held::Marker(Marker {
            id: "x".into(),
            set: 1,
            pod: "vault-0".into(),
            at: Timestamp::UNIX_EPOCH,
        })
    }

    fn other(pod: &str, initialized: Option<bool>) -> Other {
        Other {
            pod: pod.into(),
            initialized,
        }
    }

    fn why(held: &Held, others: &[Other]) -> Reason {
        turn(Some(&both()), held, "vault-1", others).unwrap_err().reason
    }

    #[test]
    fn who_brings_shares_has_no_server_initialised() {
        let model = |purpose: &str| {
            let config: crate::api::SealConfig = serde_json::from_value(json!({
                "apiVersion": "autounseal.dev/v1alpha1", "kind": "SealConfig",
                "metadata": {"name": "vault", "namespace": "v", "uid": "u"},
                "spec": {
                    "seals": [{"name": "aws", "awskms": {"kmsKeyID": "alias/a"}}],
                    "keys": [{"name": "k", "purpose": purpose, "wrapped": [{"seal": "aws", "inline": "c2hhcmU="}]}],
                },
            }))
            .unwrap();
            crate::seal::model::parse(&config).unwrap()
        };
        for purpose in ["unseal-share", "recovery-share"] {
            let fault = brings_none(&model(purpose), Some(&both())).unwrap_err();
            assert_eq!(fault.reason, Reason::AlreadyInitializedElsewhere);
            assert!(brings_none(&model(purpose), None).is_ok());
        }
        assert!(brings_none(&model("other"), Some(&both())).is_ok());
    }

    #[test]
    fn what_no_server_could_do_is_refused() {
        for spec in [
            json!({}),
            json!({"shamir": {"shares": 3, "threshold": 4}}),
            json!({"shamir": {"shares": 3, "threshold": 1}}),
            json!({"recovery": {"shares": 0, "threshold": 0}}),
        ] {
            assert_eq!(
                parse(spec.clone()).unwrap_err().reason,
                Reason::InvalidSpec,
                "{spec}"
            );
        }
        assert!(!both().keep_token);
        let kept =
            parse(json!({"recovery": {"shares": 255, "threshold": 255}, "rootToken": "Wrap"})).unwrap();
        assert!(kept.keep_token && kept.shamir.is_none());
    }

    #[test]
    fn the_seal_of_the_server_picks_the_member() {
        let state = |json: serde_json::Value| SealState::read(json.to_string().as_bytes()).unwrap();
        let shamir = state(json!({"type": "shamir", "initialized": false, "sealed": true, "t": 0}));
        let ask = both().ask(&shamir).unwrap();
        assert_eq!(ask.body(), br#"{"secret_shares":5,"secret_threshold":3}"#);
        for native in [
            json!({"type": "awskms", "initialized": false, "sealed": true, "t": 0}),
            json!({"type": "shamir", "recovery_seal": true, "initialized": false, "sealed": true, "t": 0}),
        ] {
            let ask = both().ask(&state(native)).unwrap();
            assert_eq!(ask.body(), br#"{"recovery_shares":1,"recovery_threshold":1}"#);
        }
        let only = parse(json!({"recovery": {"shares": 1, "threshold": 1}})).unwrap();
        let fault = only.ask(&shamir).unwrap_err();
        assert!(fault.message.contains("initialize.shamir"), "{}", fault.message);
    }

    #[test]
    fn the_first_pod_is_initialised_when_every_other_one_says_that_it_is_not() {
        let others = [other("vault-2", Some(false)), other("vault-1", Some(false))];
        assert_eq!(
            turn(Some(&both()), &Held::Nothing, "vault-0", &others),
            Ok(both())
        );
        assert_eq!(turn(Some(&both()), &Held::Nothing, "vault-0", &[]), Ok(both()));
        // Another one waits, and so does the first while one is silent.
        let first = [other("vault-0", Some(false))];
        assert_eq!(why(&Held::Nothing, &first), Reason::NotInitialized);
        let silent = [other("vault-2", Some(false)), other("vault-3", None)];
        let fault = turn(Some(&both()), &Held::Nothing, "vault-0", &silent).unwrap_err();
        assert!(fault.message.contains("vault-3"), "{}", fault.message);
    }

    #[test]
    fn nothing_is_initialised_over_what_is_held_or_beside_an_initialised_pod() {
        let none = [other("vault-2", Some(false))];
        let one = [other("vault-2", Some(true))];
        for held in [Held::Nothing, Held::Set, marker()] {
            assert_eq!(
                why(&held, &one),
                Reason::NotInitialized,
                "{held:?}: it has to join"
            );
        }
        assert_eq!(why(&Held::Set, &none), Reason::AlreadyInitializedElsewhere);
        assert_eq!(why(&marker(), &none), Reason::InitResponseLost);
        let unknown = Held::Unknown(Fault::denied(Reason::StoreMissing, "x"));
        assert_eq!(why(&unknown, &none), Reason::StoreMissing);
        // One that is silent may be the one that was initialised.
        assert_eq!(why(&Held::Set, &[other("vault-0", None)]), Reason::NotInitialized);
    }

    #[test]
    fn nobody_is_initialised_unasked() {
        for held in [
            Held::Nothing,
            Held::Unknown(Fault::transient(Reason::Pending, "x")),
        ] {
            let fault = turn(None, &held, "vault-0", &[]).unwrap_err();
            assert_eq!(fault.reason, Reason::NotInitialized);
        }
        let fault = turn(None, &Held::Set, "vault-0", &[]).unwrap_err();
        assert_eq!(fault.reason, Reason::AlreadyInitializedElsewhere);
    }

    #[test]
    fn what_is_lost_is_told_with_what_to_do() {
        assert!(lost("vault-0", true).message.contains("delete its volumes"));
        assert!(lost("vault-0", false).message.contains("nothing is lost"));
    }
}
