//! What follows from a server's answers.

use serde::Deserialize;

use super::watch::Said;
use crate::{
    api::{Reason, UnsealPolicy},
    seal::Fault,
};

/// What `sys/seal-status` and `sys/unseal` answer, as far as it decides anything.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "as the server answers")]
pub struct SealState {
    /// It has a root key.
    pub initialized: bool,
    /// It is sealed.
    pub sealed: bool,
    /// Shares that it needs.
    pub t: usize,
    /// Shares that it has got.
    #[serde(default)]
    pub progress: usize,
    /// Names this attempt; empty before the first share.
    #[serde(default)]
    pub nonce: String,
    /// It has a native auto seal, and its shares are those of the recovery key.
    #[serde(default)]
    pub recovery_seal: bool,
    /// It is between two seals.
    #[serde(default)]
    pub migration: bool,
    /// The type of the seal, `shamir` or that of a native one; older servers tell the recovery seal's here.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// How the cluster calls itself; only an unsealed server says it.
    #[serde(default)]
    pub cluster_id: Option<String>,
}

impl SealState {
    /// Reads an answer; `None` = it is none of a Vault or OpenBao.
    pub fn read(body: &[u8]) -> Option<Self> {
        serde_json::from_slice(body).ok()
    }

    /// In a word.
    pub fn said(&self) -> Said {
        match (self.initialized, self.sealed) {
            (false, _) => Said::NotInitialized,
            (true, true) => Said::Sealed,
            (true, false) => Said::Unsealed,
        }
    }

    /// Whether it unseals itself.
    pub fn is_native(&self) -> bool {
        self.recovery_seal || !["", "shamir"].contains(&self.kind.as_str())
    }

    /// How the cluster calls itself: a UUID, and no other text of a server's is believed or repeated.
    pub fn cluster(&self) -> Option<&str> {
        let id = self.cluster_id.as_deref()?;
        let is_uuid = id.len() == 36 && id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
        is_uuid.then_some(id)
    }

    fn attempt(&self) -> Attempt {
        Attempt {
            nonce: self.nonce.clone(),
            progress: self.progress,
        }
    }
}

/// An unsealing that somebody has begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Its name.
    pub nonce: String,
    /// Shares so far.
    pub progress: usize,
}

/// What is known beside the server's answer.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// Of the spec.
    pub policy: UnsealPolicy,
    /// This very container was seen unsealed.
    pub was_unsealed: bool,
    /// Shares that there are.
    pub shares: usize,
    /// The unsealing that was going on when the server was asked last.
    pub before: Option<&'a Attempt>,
}

/// What to do about a server's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum First {
    /// Nothing: it is unsealed.
    Nothing,
    /// It was never initialised: `initialize` decides.
    Uninitialized,
    /// Nothing, and why.
    Stays(Fault),
    /// Somebody else is at it: it is asked again soon.
    Busy(Attempt),
    /// It is given so many shares, after what was begun and left is thrown away.
    Give {
        /// How many.
        shares: usize,
        /// Whether something was left.
        reset: bool,
    },
}

/// Decides what to do about a server's state.
pub fn first(state: &SealState, known: Known<'_>) -> First {
    let stays = |reason: Reason, message: String| First::Stays(Fault::denied(reason, message));
    if !state.initialized {
        return First::Uninitialized;
    }
    if !state.sealed {
        return First::Nothing;
    }
    if state.recovery_seal {
        return stays(
            Reason::Sealed,
            "it is sealed and has a native seal, by which it unseals itself; restart it, and see its log for why it does not"
                .into(),
        );
    }
    if state.migration {
        return stays(
            Reason::Sealed,
            "it waits for a migration between two seals, which this version does not drive; finish it with `operator \
             unseal -migrate`"
                .into(),
        );
    }
    if known.policy == UnsealPolicy::OnStart && known.was_unsealed {
        return stays(
            Reason::Sealed,
            "it was sealed while its container ran, which policy: OnStart respects; restart the pod, unseal it by hand, or \
             set policy: Always"
                .into(),
        );
    }
    if state.t == 0 || state.t > known.shares {
        return stays(
            Reason::UnsealKeysMissing,
            format!(
                "it asks for {} shares, and {} keys of purpose unseal-share are there, and no set that it answered when it was \
                 initialised; bring the missing ones",
                state.t, known.shares
            ),
        );
    }
    // A person who is typing shares in is not disturbed; what nobody has gone on with since was left behind.
    let begun = state.attempt();
    if state.progress > 0 && known.before != Some(&begun) {
        return First::Busy(begun);
    }
    First::Give {
        shares: state.t,
        reset: state.progress > 0,
    }
}

/// A server's answer to a share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Its state.
    State(SealState),
    /// 400: it does not take it.
    Refused,
}

/// What to do after a share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum After {
    /// Give the next.
    Next,
    /// It is unsealed.
    Done,
    /// Somebody else has interfered: it is looked at again.
    Disturbed(Attempt),
    /// It has all that it needs and is not unsealed yet, as a follower that joins its cluster first.
    Settling(Fault),
    /// It does not take this share, or the shares together.
    Rejected(Fault),
}

/// Decides what to do after the last of the shares of keys `given`, of `needed`. `nonce`: what the first answer named this
/// attempt.
pub fn after(given: &[&str], needed: usize, nonce: Option<&str>, answer: &Answer) -> After {
    let this = given.last().copied().unwrap_or_default();
    let all = given.len() == needed;
    match answer {
        Answer::State(state) if state.initialized && !state.sealed => After::Done,
        Answer::State(state) if nonce.is_some_and(|nonce| nonce != state.nonce) && !all => {
            After::Disturbed(state.attempt())
        }
        Answer::State(state) if !all && state.progress == given.len() => After::Next,
        // The server counts a share once, whoever gives it.
        Answer::State(state) if !all && state.progress + 1 == given.len() && given.len() > 1 => {
            After::Rejected(rejected(format!(
                "the server does not count the share of key {this:?}: another key holds the same one; bring the right one"
            )))
        }
        Answer::State(state) if !all => After::Disturbed(state.attempt()),
        Answer::State(_) => After::Settling(Fault::transient(
            Reason::Sealed,
            "it took all its shares and is not unsealed yet; it is asked again in a moment",
        )),
        Answer::Refused if all && given.len() > 1 => After::Rejected(rejected(format!(
            "the server refused the shares of keys {} together: at least one of them is not of this server; bring the \
             right ones, or restart the pod to have them tried again",
            given.join(", ")
        ))),
        Answer::Refused => After::Rejected(rejected(format!(
            "the server refused the share of key {this:?}; bring the right one"
        ))),
    }
}

/// Holds that a server is of the cluster whose shares these are (security rule S11).
///
/// # Errors
/// `UnsealRejected`.
pub fn same_cluster(state: &SealState, known: Option<&str>) -> Result<(), Fault> {
    match (state.cluster(), known) {
        (Some(cluster), Some(known)) if cluster != known => Err(rejected(format!(
            "it is of cluster {cluster}, and the shares are of cluster {known}, so it gets none; correct podSelector, or bring \
             the shares of this one in another SealConfig"
        ))),
        _ => Ok(()),
    }
}

/// Somebody else is at it.
pub fn busy() -> Fault {
    Fault::transient(
        Reason::Sealed,
        "somebody else is unsealing it; it is asked again in a moment, and what is left behind then is thrown away",
    )
}

/// A share that no server takes.
pub fn malformed(key: &str) -> Fault {
    rejected(format!(
        "key {key:?} holds no share: it has neither the bytes of one nor its hexadecimal or base64 text; bring the right one"
    ))
}

fn rejected(message: String) -> Fault {
    Fault::denied(Reason::UnsealRejected, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(progress: usize, nonce: &str) -> SealState {
        SealState {
            initialized: true,
            sealed: true,
            t: 3,
            progress,
            nonce: nonce.into(),
            recovery_seal: false,
            migration: false,
            kind: "shamir".into(),
            cluster_id: None,
        }
    }

    fn unsealed() -> SealState {
        SealState {
            sealed: false,
            ..sealed(0, "")
        }
    }

    const KNOWN: Known<'static> = Known {
        policy: UnsealPolicy::OnStart,
        was_unsealed: false,
        shares: 5,
        before: None,
    };

    fn reason(first: First) -> Reason {
        match first {
            First::Stays(fault) => fault.reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn answers_of_both_products_are_read_and_others_are_not() {
        let vault = br#"{"type":"shamir","initialized":true,"sealed":true,"t":3,"n":5,"progress":1,"nonce":"x","version":"1.13.1","build_date":"","migration":false,"recovery_seal":false,"storage_type":"file"}"#;
        assert_eq!(SealState::read(vault), Some(sealed(1, "x")));
        for other in [&b"<html>"[..], b"{}", b"[]", b"{\"errors\":[\"x\"]}", b""] {
            assert_eq!(SealState::read(other), None);
        }
    }

    #[test]
    fn a_sealed_server_gets_as_many_shares_as_it_needs() {
        let give = First::Give {
            shares: 3,
            reset: false,
        };
        assert_eq!(first(&sealed(0, ""), KNOWN), give);
        assert_eq!(first(&unsealed(), KNOWN), First::Nothing);
    }

    #[test]
    fn a_server_of_another_cluster_is_told_and_text_that_is_no_id_is_not_repeated() {
        let of = |id: &str| SealState {
            cluster_id: Some(id.into()),
            ..unsealed()
        };
        let (one, other) = (
            "0b0a1c1e-6d3b-4f6f-9d3c-0123456789ab",
            "1b0a1c1e-6d3b-4f6f-9d3c-0123456789ab",
        );
        same_cluster(&of(one), Some(one)).unwrap();
        same_cluster(&of(one), None).unwrap();
        same_cluster(&unsealed(), Some(one)).unwrap();
        same_cluster(&of("hvs.token"), Some(one)).unwrap();
        let fault = same_cluster(&of(one), Some(other)).unwrap_err();
        assert_eq!(fault.reason, Reason::UnsealRejected);
    }

    #[test]
    fn a_server_that_was_sealed_by_hand_stays_so_unless_the_policy_says_always() {
        let was = Known {
            was_unsealed: true,
            ..KNOWN
        };
        assert_eq!(reason(first(&sealed(0, ""), was)), Reason::Sealed);
        let always = Known {
            policy: UnsealPolicy::Always,
            ..was
        };
        assert!(matches!(first(&sealed(0, ""), always), First::Give { .. }));
    }

    #[test]
    fn servers_that_no_share_helps_get_none() {
        let with = |change: fn(&mut SealState)| {
            let mut state = sealed(0, "");
            change(&mut state);
            reason(first(&state, KNOWN))
        };
        let raw = SealState {
            initialized: false,
            ..sealed(0, "")
        };
        assert_eq!(first(&raw, KNOWN), First::Uninitialized);
        assert_eq!(with(|s| s.recovery_seal = true), Reason::Sealed);
        assert_eq!(with(|s| s.migration = true), Reason::Sealed);
        assert_eq!(with(|s| s.t = 6), Reason::UnsealKeysMissing);
        assert_eq!(with(|s| s.t = 0), Reason::UnsealKeysMissing);
    }

    #[test]
    fn what_somebody_has_begun_is_thrown_away_only_when_nobody_goes_on_with_it() {
        let begun = Attempt {
            nonce: "x".into(),
            progress: 1,
        };
        assert_eq!(first(&sealed(1, "x"), KNOWN), First::Busy(begun.clone()));
        let again = Known {
            before: Some(&begun),
            ..KNOWN
        };
        let reset = First::Give {
            shares: 3,
            reset: true,
        };
        assert_eq!(first(&sealed(1, "x"), again), reset);
        assert!(matches!(first(&sealed(2, "x"), again), First::Busy(_)));
        assert!(matches!(first(&sealed(1, "y"), again), First::Busy(_)));
    }

    #[test]
    fn shares_follow_one_another_until_the_server_is_unsealed() {
        let state = |state| Answer::State(state);
        assert_eq!(after(&["a"], 3, None, &state(sealed(1, "x"))), After::Next);
        assert_eq!(
            after(&["a", "b"], 3, Some("x"), &state(sealed(2, "x"))),
            After::Next
        );
        assert_eq!(
            after(&["a", "b", "c"], 3, Some("x"), &state(unsealed())),
            After::Done
        );
        // Somebody else's share was the last that was needed.
        assert_eq!(after(&["a"], 3, None, &state(unsealed())), After::Done);
    }

    #[test]
    fn interference_is_noticed() {
        let state = |state| Answer::State(state);
        for (given, answer) in [
            (&["a", "b"][..], sealed(2, "other")),
            (&["a"], sealed(2, "x")),
            (&["a", "b"], sealed(0, "x")),
            (&["a"], sealed(0, "x")),
        ] {
            let nonce = (given.len() > 1).then_some("x");
            assert!(
                matches!(
                    after(given, 3, nonce, &state(answer.clone())),
                    After::Disturbed(_)
                ),
                "{given:?} {answer:?}"
            );
        }
    }

    #[test]
    fn a_refused_share_is_named_by_its_key_and_a_refused_set_by_all() {
        let message = |given: &[&str], answer: &Answer| match after(given, 3, Some("x"), answer) {
            After::Rejected(fault) => {
                assert_eq!(fault.reason, Reason::UnsealRejected);
                fault.message
            }
            other => panic!("{other:?}"),
        };
        assert!(message(&["a", "b"], &Answer::Refused).contains("key \"b\""));
        assert!(message(&["a", "b"], &Answer::State(sealed(1, "x"))).contains("key \"b\": another"));
        assert!(message(&["a", "b", "c"], &Answer::Refused).contains("keys a, b, c"));
        let joining = after(&["a", "b", "c"], 3, Some("x"), &Answer::State(sealed(0, "")));
        assert!(matches!(joining, After::Settling(_)), "{joining:?}");
    }
}
