//! Whether a workload is rolled because the keys that its pods read have changed (security rule S16).

use jiff::{SignedDuration, Timestamp};

use super::{
    Fault, backoff,
    observed::{Delivered, PodFacts},
    pods::is_current,
};
use crate::api::Reason;

/// At most one restart of a workload in this time.
pub const RESTART_INTERVAL: SignedDuration = SignedDuration::from_mins(10);

/// At most this many restarts of a workload in a day.
pub const RESTARTS_A_DAY: usize = 6;

const FAILED: &str = "its last rollout failed; mend it, then the restart follows";

/// A workload that owns pods of a target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkloadFacts {
    /// `Deployment vault/server`: for messages.
    pub name: String,
    /// It carries `autounseal.dev/restart: allowed`.
    pub allowed: bool,
    /// Its pod template itself uses the delivered Secret.
    pub uses_secret: bool,
    /// The counter in its template's annotation.
    pub delivered: Option<u64>,
    /// When we restarted it, newest last.
    pub restarts: Vec<Timestamp>,
    /// How far its last rollout is.
    pub rollout: Rollout,
    /// Pods are replaced only when they are deleted.
    pub on_delete: bool,
    /// How many pods it should have.
    pub replicas: usize,
}

/// How far a rollout is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rollout {
    /// Every replica runs the template and is ready.
    #[default]
    Complete,
    /// On the way.
    Running,
    /// The controller gave up.
    Failed,
    /// The workload itself keeps it from its end: what does, and what to do about it.
    Held(&'static str),
}

/// What happens to a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Restart {
    /// Nothing to do.
    Nothing,
    /// It carries no consent: nothing, and nothing is wrong.
    NotAsked,
    /// Its template gets the counter.
    Annotate,
    /// This pod is evicted.
    Evict(String),
    /// Held back; looked at again at that time, or when something changes.
    Blocked(Fault, Option<Timestamp>),
}

/// Decides about one workload. `pods` are its pods that use the Secret.
pub fn decide(
    workload: &WorkloadFacts,
    pods: &[&PodFacts],
    secret: &str,
    delivered: &Delivered,
    now: Timestamp,
) -> Restart {
    let outdated = |pod: &&&PodFacts| !is_current(pod, secret, delivered, delivered.keys_changed);
    // A pod that does not run yet will read what is there: only started pods are behind.
    let started = |pod: &&&PodFacts| {
        pod.uses
            .iter()
            .any(|used| used.secret == secret && used.started.is_some())
    };
    let behind: Vec<&PodFacts> = pods.iter().filter(outdated).filter(started).copied().collect();
    if behind.is_empty() || delivered.count <= 1 {
        return Restart::Nothing;
    }
    if !workload.allowed || !workload.uses_secret {
        return Restart::NotAsked;
    }
    if workload.delivered.is_none_or(|count| count < delivered.count) {
        return annotate(workload, now);
    }
    if workload.on_delete {
        return next_eviction(workload, pods, &behind);
    }
    match workload.rollout {
        Rollout::Complete | Rollout::Running => Restart::Nothing,
        Rollout::Failed => blocked(workload, FAILED, None),
        Rollout::Held(why) => blocked(workload, why, None),
    }
}

fn annotate(workload: &WorkloadFacts, now: Timestamp) -> Restart {
    let since = |span: SignedDuration| {
        workload
            .restarts
            .iter()
            .filter(move |at| now.duration_since(**at) < span)
            .copied()
            .collect::<Vec<_>>()
    };
    let until = |at: Timestamp, span| at.saturating_add(span).ok();
    if let Some(last) = since(RESTART_INTERVAL).last() {
        return blocked(
            workload,
            "it was restarted within the last 10 minutes and follows when they are over",
            until(*last, RESTART_INTERVAL),
        );
    }
    let day = SignedDuration::from_hours(24);
    let today = since(day);
    if today.len() >= RESTARTS_A_DAY {
        return blocked(
            workload,
            &format!(
                "it was restarted {RESTARTS_A_DAY} times within a day; find out why its keys change so often"
            ),
            until(today[today.len() - RESTARTS_A_DAY], day),
        );
    }
    match workload.rollout {
        Rollout::Complete => Restart::Annotate,
        // Pods of an OnDelete workload never roll by themselves: its rollout says nothing.
        _ if workload.on_delete => Restart::Annotate,
        Rollout::Running => blocked(
            workload,
            "its last rollout is still under way; it follows when that is complete",
            None,
        ),
        Rollout::Failed => blocked(workload, FAILED, None),
        Rollout::Held(why) => blocked(workload, why, None),
    }
}

fn blocked(workload: &WorkloadFacts, why: &str, until: Option<Timestamp>) -> Restart {
    let message = format!("{} is not restarted: {why}", workload.name);
    Restart::Blocked(Fault::denied(Reason::RestartBlocked, message), until)
}

/// One at a time, standbys first, and only while every other pod is ready.
fn next_eviction(workload: &WorkloadFacts, pods: &[&PodFacts], behind: &[&PodFacts]) -> Restart {
    let active = |pod: &PodFacts| {
        ["vault-active", "openbao-active"]
            .iter()
            .any(|label| pod.labels.get(*label).is_some_and(|value| value == "true"))
    };
    let mut order: Vec<_> = behind.iter().map(|pod| (active(pod), &pod.name)).collect();
    order.sort();
    let Some((_, next)) = order.first() else {
        return Restart::Nothing;
    };
    let blocked = |why: String| {
        let message = format!(
            "{} waits for {why} before the next pod is replaced",
            workload.name
        );
        Restart::Blocked(Fault::transient(Reason::RestartBlocked, message), None)
    };
    // Between an eviction and its replacement there is one pod less, and nobody to ask whether it is ready.
    if pods.len() < workload.replicas {
        return blocked(format!(
            "{} of its {} pods to exist again",
            workload.replicas - pods.len(),
            workload.replicas
        ));
    }
    match pods.iter().find(|pod| !pod.ready && pod.name != **next) {
        None => Restart::Evict((*next).clone()),
        Some(waiting) => blocked(format!("pod {} to be ready", waiting.name)),
    }
}

/// When to look again at a blocked restart that names no time.
pub fn look_again(fault: &Fault, jitter: f64) -> std::time::Duration {
    backoff(fault, 2, jitter)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::observed::SecretUse;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn delivered() -> Delivered {
        Delivered {
            count: 2,
            keys_changed: Some(at(10_000)),
            content_changed: Some(at(10_000)),
            ..Delivered::default()
        }
    }

    fn pod(name: &str, started: i64, ready: bool, active: bool) -> PodFacts {
        PodFacts {
            name: name.into(),
            created: Some(at(started)),
            ready,
            labels: [("vault-active".to_owned(), active.to_string())].into(),
            uses: vec![SecretUse {
                secret: "s".into(),
                volume: true,
                started: Some(at(started)),
            }],
            ..PodFacts::default()
        }
    }

    fn workload() -> WorkloadFacts {
        WorkloadFacts {
            name: "Deployment app".into(),
            allowed: true,
            uses_secret: true,
            delivered: Some(1),
            ..WorkloadFacts::default()
        }
    }

    fn decide_at(workload: &WorkloadFacts, pods: &[PodFacts], now: i64) -> Restart {
        decide(
            workload,
            &pods.iter().collect::<Vec<_>>(),
            "s",
            &delivered(),
            at(now),
        )
    }

    #[test]
    fn pods_behind_the_keys_are_rolled_once() {
        let old = [pod("a", 9_000, true, false)];
        assert_eq!(decide_at(&workload(), &old, 10_001), Restart::Annotate);
        let done = WorkloadFacts {
            delivered: Some(2),
            ..workload()
        };
        assert_eq!(decide_at(&done, &old, 10_001), Restart::Nothing);
        for (rollout, word) in [
            (Rollout::Failed, "failed"),
            (Rollout::Held("it is paused"), "paused"),
        ] {
            let stuck = WorkloadFacts {
                rollout,
                ..done.clone()
            };
            let Restart::Blocked(fault, None) = decide_at(&stuck, &old, 10_001) else {
                panic!("{rollout:?}")
            };
            assert!(fault.message.contains(word), "{}", fault.message);
        }
        assert_eq!(
            decide_at(&workload(), &[pod("a", 10_001, true, false)], 10_001),
            Restart::Nothing
        );
    }

    #[test]
    fn the_first_delivery_and_a_change_of_text_only_roll_nothing() {
        let first = Delivered {
            count: 1,
            ..delivered()
        };
        let old = pod("a", 9_000, true, false);
        assert_eq!(
            decide(&workload(), &[&old], "s", &first, at(10_001)),
            Restart::Nothing
        );
        let text = Delivered {
            keys_changed: Some(at(8_000)),
            ..delivered()
        };
        assert_eq!(
            decide(&workload(), &[&old], "s", &text, at(10_001)),
            Restart::Nothing
        );
    }

    #[test]
    fn without_consent_or_use_in_the_template_nothing_is_rolled() {
        let old = [pod("a", 9_000, true, false)];
        assert_eq!(
            decide_at(
                &WorkloadFacts {
                    allowed: false,
                    ..workload()
                },
                &old,
                10_001
            ),
            Restart::NotAsked
        );
        assert_eq!(
            decide_at(
                &WorkloadFacts {
                    uses_secret: false,
                    ..workload()
                },
                &old,
                10_001
            ),
            Restart::NotAsked
        );
    }

    #[test]
    fn restarts_are_rare_and_wait_for_the_one_before() {
        let old = [pod("a", 9_000, true, false)];
        let recent = WorkloadFacts {
            restarts: vec![at(9_900)],
            ..workload()
        };
        let Restart::Blocked(fault, until) = decide_at(&recent, &old, 10_001) else {
            panic!()
        };
        assert_eq!((fault.reason, until), (Reason::RestartBlocked, Some(at(10_500))));
        let many = WorkloadFacts {
            restarts: (0..6).map(|n| at(n * 1000)).collect(),
            ..workload()
        };
        let Restart::Blocked(_, until) = decide_at(&many, &old, 10_001) else {
            panic!()
        };
        assert_eq!(until, Some(at(86_400)));
        for rollout in [Rollout::Running, Rollout::Failed, Rollout::Held("it is paused")] {
            let busy = WorkloadFacts {
                rollout,
                ..workload()
            };
            assert!(matches!(decide_at(&busy, &old, 10_001), Restart::Blocked(..)));
        }
    }

    #[test]
    fn under_on_delete_standbys_go_first_one_at_a_time() {
        let on_delete = WorkloadFacts {
            on_delete: true,
            replicas: 3,
            delivered: Some(2),
            ..workload()
        };
        let pods = [
            pod("a-0", 9_000, true, true),
            pod("a-1", 9_000, true, false),
            pod("a-2", 9_000, true, false),
        ];
        assert_eq!(decide_at(&on_delete, &pods, 10_001), Restart::Evict("a-1".into()));
        let pods = [
            pod("a-0", 9_000, true, true),
            pod("a-1", 10_001, false, false),
            pod("a-2", 9_000, true, false),
        ];
        assert!(matches!(
            decide_at(&on_delete, &pods, 10_002),
            Restart::Blocked(..)
        ));
        let pods = [pod("a-0", 9_000, true, true), pod("a-2", 9_000, true, false)];
        assert!(matches!(
            decide_at(&on_delete, &pods, 10_002),
            Restart::Blocked(..)
        ));
        let pods = [
            pod("a-0", 9_000, true, true),
            pod("a-1", 10_001, true, false),
            pod("a-2", 10_002, true, false),
        ];
        assert_eq!(decide_at(&on_delete, &pods, 10_003), Restart::Evict("a-0".into()));
    }
}
