//! When a pod is looked at, and what is remembered of it.

use std::{net::IpAddr, time::Duration};

use jiff::{SignedDuration, Timestamp};

use super::{Unseal, exchange::Attempt};
use crate::{
    api::{Reason, UnsealPodStatus},
    seal::{Fault, FaultKind, backoff, fault::growing, observed::PodFacts},
};

/// How often a pod is asked that nothing was heard of.
pub const SWEEP: Duration = Duration::from_mins(1);

/// A server whose listener is not up yet is tried so often, about five minutes long; then it is left to the sweep.
const PATIENCE: u32 = 3000;

/// How long a person who is typing shares in is given for the next one.
const TYPING: Duration = Duration::from_secs(2);

/// How often a server is asked whether its migration is over, or its shares can be replaced.
const UNDER_WAY: Duration = Duration::from_secs(5);

/// What a server said of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// It has no root key.
    NotInitialized,
    /// It is sealed.
    Sealed,
    /// It is unsealed.
    Unsealed,
}

/// What came of looking at a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// What the server said last, if it is known to be the server.
    pub said: Option<Said>,
    /// Why it is not unsealed.
    pub fault: Option<Fault>,
    /// An unsealing that somebody else has begun.
    pub begun: Option<Attempt>,
    /// How its cluster calls itself, once it is unsealed.
    pub cluster: Option<String>,
    /// It says that it is between two seals.
    pub migrating: bool,
    /// Its shares are being replaced, or are to be.
    pub rotating: bool,
    /// It may be opened by the shares of before a rotation, once another server of its cluster is unsealed.
    pub alone: bool,
}

/// What is remembered of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodRecord {
    /// Name.
    pub name: String,
    /// What came of the last look; `None` = there was none.
    pub look: Option<Look>,
    /// The container that was last seen unsealed, and since when.
    pub unsealed: Option<(String, Timestamp)>,
    /// What the pod was when it was last looked at.
    pub(super) seen: Option<Seen>,
    /// Looks in a row that ended in the same fault.
    pub(super) failures: u32,
    /// When that was.
    pub(super) looked: Timestamp,
    /// When it is looked at next, without more reason.
    pub(super) next: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    ip: IpAddr,
    container: String,
    ready: bool,
    sealed: bool,
}

/// Why a pod is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It is new, or the operator is.
    New,
    /// Its address changed.
    Moved,
    /// Its container restarted.
    Restarted,
    /// It lost its readiness.
    NotReady,
    /// Its label says that it is sealed.
    Label,
    /// It is time.
    Time,
}

/// What to do about a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing before it changes: its server does not run.
    Nothing,
    /// Nothing before that time, or before it changes.
    Wait(Timestamp),
    /// It is looked at.
    Look(Why),
}

/// Decides what to do about a pod.
pub fn next(unseal: &Unseal, pod: &PodFacts, record: &PodRecord, now: Timestamp) -> Next {
    let Some(is) = seen(unseal, pod) else {
        return Next::Nothing;
    };
    let Some(was) = &record.seen else {
        return Next::Look(Why::New);
    };
    if was.container != is.container {
        Next::Look(Why::Restarted)
    } else if was.ip != is.ip {
        Next::Look(Why::Moved)
    } else if is.sealed && !was.sealed {
        Next::Look(Why::Label)
    } else if was.ready && !is.ready {
        Next::Look(Why::NotReady)
    } else if record.next <= now || now < record.looked {
        // A clock that has gone back to before the last look says nothing of how long ago that was.
        Next::Look(Why::Time)
    } else {
        Next::Wait(record.next)
    }
}

fn seen(unseal: &Unseal, pod: &PodFacts) -> Option<Seen> {
    let place = unseal.place(pod)?;
    Some(Seen {
        ip: place.ip,
        container: place.container,
        ready: pod.ready,
        sealed: pod
            .labels
            .get(unseal.sealed_label())
            .is_some_and(|value| value == "true"),
    })
}

impl PodRecord {
    /// What a status that this or another operator wrote remembers of a pod.
    pub fn from_status(name: &str, status: Option<&UnsealPodStatus>) -> Self {
        let unsealed = status.and_then(|status| {
            let since = status.last_unsealed_time.as_ref().map(|time| time.0);
            Some((status.container_id.clone()?, since.unwrap_or_default()))
        });
        Self {
            name: name.to_owned(),
            unsealed,
            ..Self::default()
        }
    }

    /// The same pod, of which only what outlives a change of the spec is remembered.
    #[must_use]
    pub fn anew(&self) -> Self {
        Self {
            name: self.name.clone(),
            unsealed: self.unsealed.clone(),
            ..Self::default()
        }
    }

    /// Another SealConfig selects the pod, so that neither touches it. Whether this is news.
    pub fn contested(&mut self, other: &str) -> bool {
        let fault = Fault::denied(
            Reason::PodContested,
            format!("SealConfig {other} selects it as well, so neither unseals it; narrow one podSelector"),
        );
        let before = self.look.replace(Look {
            fault: Some(fault),
            ..Look::default()
        });
        before != self.look
    }

    /// Whether it was last found to be another SealConfig's too.
    pub fn is_contested(&self) -> bool {
        let fault = self.look.as_ref().and_then(|look| look.fault.as_ref());
        fault.is_some_and(|fault| fault.reason == Reason::PodContested)
    }

    /// For the status.
    pub fn status(&self) -> UnsealPodStatus {
        let time = |at: Timestamp| {
            k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
                Timestamp::from_second(at.as_second()).unwrap_or(at),
            )
        };
        UnsealPodStatus {
            name: self.name.clone(),
            container_id: self.unsealed.as_ref().map(|(container, _)| container.clone()),
            last_unsealed_time: self.unsealed.as_ref().map(|(_, since)| time(*since)),
        }
    }

    /// Whether this container was seen unsealed.
    pub fn was_unsealed(&self, container: &str) -> bool {
        self.unsealed.as_ref().is_some_and(|(seen, _)| seen == container)
    }

    /// A pod changed in a way that is no reason to look at it, such as that it became ready: else the next time that it
    /// stops being so would be no change.
    pub fn noticed(&mut self, unseal: &Unseal, pod: &PodFacts) {
        let (Some(was), Some(is)) = (&mut self.seen, seen(unseal, pod)) else {
            return;
        };
        if was.container == is.container && was.ip == is.ip {
            *was = is;
        }
    }

    /// Remembers what came of a look at a pod as it was then. Whether people are told something new.
    pub fn looked(
        &mut self,
        unseal: &Unseal,
        pod: &PodFacts,
        look: Look,
        now: Timestamp,
        jitter: f64,
    ) -> bool {
        let told = |record: &Self| {
            let look = record.look.as_ref();
            let fault = look.and_then(|look| look.fault.clone());
            let cluster = look.and_then(|look| look.cluster.clone());
            let said = look.map(|look| (look.said, look.migrating));
            (said, fault, cluster, record.unsealed.clone())
        };
        let before = told(self);
        let seen = seen(unseal, pod);
        let container = seen.as_ref().map(|seen| seen.container.clone());
        let reason = |look: &Look| look.fault.as_ref().map(|fault| fault.reason);
        let same = self.look.as_ref().and_then(&reason) == reason(&look)
            && self.seen.as_ref().map(|seen| &seen.container) == container.as_ref();
        self.failures = if same { self.failures.saturating_add(1) } else { 1 };
        if look.said == Some(Said::Unsealed)
            && let Some(container) = container
            && !self.was_unsealed(&container)
        {
            self.unsealed = Some((container, now));
        }
        let wait = again(&look, self.failures, jitter);
        self.next = SignedDuration::try_from(wait)
            .ok()
            .and_then(|wait| now.checked_add(wait).ok())
            .unwrap_or(now);
        self.looked = now;
        self.seen = seen;
        self.look = Some(look);
        before != told(self)
    }
}

/// How long until a pod is looked at again, after so many looks in a row that ended alike. `jitter` in 0.0..1.0.
pub fn again(look: &Look, times: u32, jitter: f64) -> Duration {
    // Never sooner than the sweep's own time: an idle server is asked at most once a minute.
    let sweep = SWEEP.mul_f64(1.0 + 0.25 * jitter.clamp(0.0, 1.0));
    let growing = |first, factor, most| {
        let seconds = Duration::from_secs_f64;
        growing(seconds(first), factor, seconds(most), times)
    };
    if look.begun.is_some() {
        return TYPING;
    }
    let Some(fault) = &look.fault else {
        if look.migrating || look.rotating {
            return UNDER_WAY;
        }
        return sweep;
    };
    match fault.reason {
        // It serves, whatever comes of its new shares; and each try of these is written down.
        Reason::TargetUnreachable if look.rotating => growing(0.25, 2.0, UNDER_WAY.as_secs_f64()),
        // Who is at it may be done at any time, and the others of the cluster may come.
        Reason::UnsealRejected if look.rotating || look.alone => sweep,
        Reason::TargetUnreachable if times > PATIENCE => sweep,
        // A listener that is not up costs a refused connection, and whoever waits for the server waits for the next try.
        Reason::TargetUnreachable => growing(0.025, 1.5, 0.1),
        // A follower of a raft cluster is initialised when it has joined, and others when their turn comes.
        Reason::NotInitialized | Reason::InitResponseNotStored => growing(0.25, 1.5, 15.0),
        // It cannot be revoked before the server has found its place in the cluster.
        Reason::RootTokenHeld => growing(0.25, 2.0, 60.0),
        // The pod changed under our hands: it is a new one a moment later.
        Reason::TargetNotVerified if fault.kind == FaultKind::Transient => growing(0.1, 2.0, 60.0),
        Reason::TargetNotVerified => growing(1.0, 2.0, 60.0),
        // Asking again and again with shares that were refused helps nobody.
        Reason::UnsealRejected => growing(60.0, 2.0, 3600.0),
        Reason::Sealed if fault.kind == FaultKind::Transient => growing(0.25, 1.5, 15.0),
        Reason::Sealed
        | Reason::Migrating
        | Reason::UnsealKeysMissing
        | Reason::PodContested
        | Reason::AlreadyInitializedElsewhere
        | Reason::InitResponseLost => sweep,
        // A seal that does not open the shares.
        _ => backoff(fault, times, jitter),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::unseal::tests::{parsed, pod};

    fn now() -> Timestamp {
        Timestamp::from_second(1_000_000).unwrap()
    }

    fn look(said: Said) -> Look {
        Look {
            said: Some(said),
            ..Look::default()
        }
    }

    fn failed(reason: Reason) -> Look {
        Look {
            fault: Some(Fault::denied(reason, "x")),
            ..Look::default()
        }
    }

    fn unsealed() -> PodRecord {
        let mut record = PodRecord::default();
        let mut ready = pod();
        ready.ready = true;
        record.looked(&parsed(&[]).unwrap(), &ready, look(Said::Unsealed), now(), 0.0);
        record
    }

    fn why(change: fn(&mut PodFacts)) -> Next {
        let mut pod = pod();
        pod.ready = true;
        change(&mut pod);
        next(&parsed(&[]).unwrap(), &pod, &unsealed(), now())
    }

    #[test]
    fn each_event_leads_to_a_look_and_nothing_else_does() {
        let new = next(&parsed(&[]).unwrap(), &pod(), &PodRecord::default(), now());
        assert_eq!(new, Next::Look(Why::New));
        assert_eq!(why(|pod| pod.ip = None), Next::Nothing);
        assert_eq!(why(|pod| pod.containers[1].id = None), Next::Nothing);
        assert_eq!(
            why(|pod| pod.containers[1].id = Some("c2".into())),
            Next::Look(Why::Restarted)
        );
        assert_eq!(
            why(|pod| pod.ip = Some("10.0.0.9".parse().unwrap())),
            Next::Look(Why::Moved)
        );
        assert_eq!(why(|pod| pod.ready = false), Next::Look(Why::NotReady));
        let label = |pod: &mut PodFacts| {
            pod.labels.insert("vault-sealed".into(), "true".into());
        };
        assert_eq!(why(label), Next::Look(Why::Label));
        for nothing in [
            |_: &mut PodFacts| {},
            |pod: &mut PodFacts| {
                pod.labels.insert("vault-sealed".into(), "false".into());
            },
            |pod: &mut PodFacts| {
                pod.labels.insert("openbao-sealed".into(), "true".into());
            },
            |pod: &mut PodFacts| pod.containers[0].id = Some("another sidecar".into()),
        ] {
            assert!(matches!(why(nothing), Next::Wait(_)));
        }
    }

    #[test]
    fn a_label_and_a_readiness_that_come_and_go_lead_to_a_look_each_time() {
        let unseal = parsed(&[]).unwrap();
        let with = |ready: bool, sealed: bool| {
            let mut pod = pod();
            pod.ready = ready;
            pod.labels.insert("vault-sealed".into(), sealed.to_string());
            pod
        };
        let mut record = PodRecord::default();
        for (bad, why) in [
            (with(false, false), Why::NotReady),
            (with(true, true), Why::Label),
        ] {
            for _ in 0..2 {
                record.looked(&unseal, &bad, look(Said::Unsealed), now(), 0.0);
                let good = with(true, false);
                assert!(matches!(next(&unseal, &good, &record, now()), Next::Wait(_)));
                record.noticed(&unseal, &good);
                assert_eq!(next(&unseal, &bad, &record, now()), Next::Look(why));
            }
        }
        // What has restarted is for the next look, whatever else is noticed of it.
        let mut restarted = with(true, false);
        restarted.containers[1].id = Some("c2".into());
        record.noticed(&unseal, &restarted);
        assert_eq!(
            next(&unseal, &restarted, &record, now()),
            Next::Look(Why::Restarted)
        );
    }

    #[test]
    fn what_no_event_tells_is_swept_up() {
        let record = unsealed();
        let unseal = parsed(&[]).unwrap();
        let mut ready = pod();
        ready.ready = true;
        let later = |seconds: i64| now().checked_add(SignedDuration::from_secs(seconds)).unwrap();
        assert_eq!(next(&unseal, &ready, &record, later(59)), Next::Wait(later(60)));
        assert_eq!(next(&unseal, &ready, &record, later(60)), Next::Look(Why::Time));
    }

    #[test]
    fn a_container_that_was_unsealed_is_remembered_across_operators() {
        let record = unsealed();
        assert!(record.was_unsealed("c1") && !record.was_unsealed("c2"));
        let next = PodRecord::from_status("vault-0", Some(&record.status()));
        assert!(next.was_unsealed("c1") && next.seen.is_none());
        assert!(!PodRecord::from_status("vault-0", None).was_unsealed("c1"));
    }

    #[test]
    fn a_contested_pod_is_told_once_and_looked_at_when_it_is_free() {
        let mut record = unsealed();
        assert!(record.contested("other") && record.is_contested());
        assert!(!record.contested("other"), "no news");
        let free = record.anew();
        assert!(free.was_unsealed("c1") && !free.is_contested());
        assert_eq!(
            next(&parsed(&[]).unwrap(), &pod(), &free, now()),
            Next::Look(Why::New)
        );
    }

    #[test]
    fn a_clock_that_was_days_ahead_keeps_nobody_waiting_for_days() {
        let unseal = parsed(&[]).unwrap();
        let ahead = now().checked_add(SignedDuration::from_hours(72)).unwrap();
        let mut record = PodRecord::default();
        record.looked(&unseal, &pod(), failed(Reason::UnsealRejected), ahead, 0.0);
        assert!(matches!(next(&unseal, &pod(), &record, ahead), Next::Wait(_)));
        assert_eq!(next(&unseal, &pod(), &record, now()), Next::Look(Why::Time));
    }

    #[test]
    fn the_time_of_unsealing_stays_while_the_container_does() {
        let mut record = unsealed();
        let unseal = parsed(&[]).unwrap();
        let later = now().checked_add(SignedDuration::from_secs(60)).unwrap();
        assert!(
            !record.looked(&unseal, &pod(), look(Said::Unsealed), later, 0.0),
            "nothing new"
        );
        assert_eq!(record.unsealed, Some(("c1".into(), now())));
        let mut restarted = pod();
        restarted.containers[1].id = Some("c2".into());
        assert!(record.looked(&unseal, &restarted, look(Said::Unsealed), later, 0.0));
        assert_eq!(record.unsealed, Some(("c2".into(), later)));
        assert!(record.looked(&unseal, &restarted, failed(Reason::Sealed), later, 0.0));
        assert_eq!(record.unsealed, Some(("c2".into(), later)));
    }

    #[test]
    fn a_listener_that_is_not_up_is_tried_from_25_to_100_ms() {
        let wait = |times| again(&failed(Reason::TargetUnreachable), times, 0.5);
        assert_eq!(wait(1), Duration::from_millis(25));
        assert!((2..=4).all(|times| wait(times) > wait(times - 1)));
        assert_eq!(wait(20), Duration::from_millis(100));
        assert_eq!(wait(PATIENCE), Duration::from_millis(100));
        assert!(wait(PATIENCE + 1) >= SWEEP);
    }

    #[test]
    fn a_server_whose_shares_are_replaced_is_asked_again_soon_and_not_ever_more_seldom() {
        let wait = |reason: Reason, times: u32| {
            let look = Look {
                rotating: true,
                ..failed(reason)
            };
            again(&look, times, 0.0)
        };
        assert_eq!(wait(Reason::TargetUnreachable, 1), Duration::from_millis(250));
        assert_eq!(wait(Reason::TargetUnreachable, 20), UNDER_WAY);
        assert_eq!(wait(Reason::UnsealRejected, 1), SWEEP);
        assert_eq!(wait(Reason::UnsealRejected, 20), SWEEP);
        let alone = Look {
            alone: true,
            ..failed(Reason::UnsealRejected)
        };
        assert_eq!(again(&alone, 20, 0.0), SWEEP);
    }

    #[test]
    fn waits_start_afresh_with_another_fault_and_another_container() {
        let mut record = PodRecord::default();
        let unseal = parsed(&[]).unwrap();
        for _ in 0..9 {
            record.looked(&unseal, &pod(), failed(Reason::TargetUnreachable), now(), 0.0);
        }
        assert_eq!(record.failures, 9);
        record.looked(&unseal, &pod(), failed(Reason::NotInitialized), now(), 0.0);
        assert_eq!(record.failures, 1);
        record.looked(&unseal, &pod(), failed(Reason::NotInitialized), now(), 0.0);
        let mut restarted = pod();
        restarted.containers[1].id = Some("c2".into());
        record.looked(&unseal, &restarted, failed(Reason::NotInitialized), now(), 0.0);
        assert_eq!(record.failures, 1);
    }

    #[test]
    fn an_idle_server_is_asked_at_most_once_a_minute() {
        for jitter in [0.0, 0.5, 1.0] {
            let wait = again(&look(Said::Unsealed), 1, jitter);
            assert!(wait >= SWEEP && wait <= SWEEP.mul_f64(1.25));
        }
        assert!(again(&failed(Reason::UnsealRejected), 1, 0.0) >= SWEEP);
    }
}
