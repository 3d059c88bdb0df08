//! Whether a workload is rolled because the keys that its pods read have changed (security rule S16).

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::{
    Fault,
    fault::spread,
    observed::{Delivered, PodFacts},
    pods::has_keys,
};
use crate::api::Reason;

/// At most one restart of a workload in this time.
pub const RESTART_INTERVAL: SignedDuration = SignedDuration::from_mins(10);

/// At most this many restarts of a workload in a day.
pub const RESTARTS_A_DAY: usize = 6;

/// When a workload that keeps pods from the new keys is looked at again: it is not watched.
const STUCK_INTERVAL: SignedDuration = SignedDuration::from_secs(30);

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
    /// It does not end by itself: what keeps it from that, and what to do about it.
    Stuck(&'static str),
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
    /// Held back; the fault says when it is worth another look.
    Blocked(Fault),
}

/// The pods that started before the keys changed that their Secret holds. One that does not run yet reads what is there,
/// and at the first delivery there was nothing before.
pub fn behind<'a>(pods: &[&'a PodFacts], secret: &str, delivered: &Delivered) -> Vec<&'a PodFacts> {
    if delivered.count <= 1 {
        return Vec::new();
    }
    let outdated = |pod: &&&PodFacts| !has_keys(pod, secret, delivered);
    let started = |pod: &&&PodFacts| {
        pod.uses
            .iter()
            .any(|used| used.secret == secret && used.started.is_some())
    };
    pods.iter().filter(outdated).filter(started).copied().collect()
}

/// Decides about one workload. `pods` are its pods that use the Secret.
pub fn decide(
    workload: &WorkloadFacts,
    pods: &[&PodFacts],
    secret: &str,
    delivered: &Delivered,
    now: Timestamp,
) -> Restart {
    let behind = behind(pods, secret, delivered);
    if behind.is_empty() {
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
        Rollout::Stuck(why) => blocked(workload, why, Some(STUCK_INTERVAL)),
    }
}

fn annotate(workload: &WorkloadFacts, now: Timestamp) -> Restart {
    // A clock that was far ahead when it wrote one of them must not hold the workload until then.
    let since = |span: SignedDuration| {
        workload
            .restarts
            .iter()
            .filter(move |at| now.duration_since(**at).abs() < span)
            .copied()
            .collect::<Vec<_>>()
    };
    let left =
        |at: Timestamp, span: SignedDuration| Some(span - now.duration_since(at).max(SignedDuration::ZERO));
    if let Some(last) = since(RESTART_INTERVAL).last() {
        return blocked(
            workload,
            "it was restarted within the last 10 minutes and follows when they are over",
            left(*last, RESTART_INTERVAL),
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
            left(today[today.len() - RESTARTS_A_DAY], day),
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
        Rollout::Stuck(why) => blocked(workload, why, Some(STUCK_INTERVAL)),
    }
}

fn blocked(workload: &WorkloadFacts, why: &str, wait: Option<SignedDuration>) -> Restart {
    let message = format!("{} is not restarted: {why}", workload.name);
    let mut fault = Fault::denied(Reason::RestartBlocked, message);
    fault.retry_after = wait.and_then(|wait| Duration::try_from(wait).ok());
    Restart::Blocked(fault)
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
        // Pods are watched: it is no use to ask often.
        Restart::Blocked(Fault::denied(Reason::RestartBlocked, message))
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

/// How long until a workload is looked at again whose pods are behind a change of keys. Neither its consent nor its rollout
/// is watched: soon while the change is young, then less and less often.
pub fn look_again(changed: Timestamp, now: Timestamp, jitter: f64) -> Duration {
    let age = Duration::try_from(now.duration_since(changed)).unwrap_or_default();
    spread(
        (age / 4).clamp(Duration::from_mins(1), Duration::from_mins(10)),
        jitter,
    )
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
        for word in ["failed", "paused"] {
            let stuck = WorkloadFacts {
                rollout: Rollout::Stuck(word),
                ..done.clone()
            };
            let Restart::Blocked(fault) = decide_at(&stuck, &old, 10_001) else {
                panic!("{word}")
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
        let Restart::Blocked(fault) = decide_at(&recent, &old, 10_001) else {
            panic!()
        };
        let wait = Duration::from_secs(10_500 - 10_001);
        assert_eq!(
            (fault.reason, fault.retry_after),
            (Reason::RestartBlocked, Some(wait))
        );
        for (ahead, waits) in [(300, Some(Duration::from_mins(10))), (10_800, None)] {
            let ahead = WorkloadFacts {
                restarts: vec![at(10_001 + ahead)],
                ..workload()
            };
            let waiting = match decide_at(&ahead, &old, 10_001) {
                Restart::Blocked(fault) => fault.retry_after,
                other => {
                    assert_eq!(other, Restart::Annotate);
                    None
                }
            };
            assert_eq!(waiting, waits);
        }
        let many = WorkloadFacts {
            restarts: (0..6).map(|n| at(n * 1000)).collect(),
            ..workload()
        };
        let Restart::Blocked(fault) = decide_at(&many, &old, 10_001) else {
            panic!()
        };
        assert_eq!(fault.retry_after, Some(Duration::from_secs(86_400 - 10_001)));
        for rollout in [Rollout::Running, Rollout::Stuck("it is paused")] {
            let busy = WorkloadFacts {
                rollout,
                ..workload()
            };
            assert!(matches!(decide_at(&busy, &old, 10_001), Restart::Blocked(..)));
        }
    }

    #[test]
    fn a_workload_is_looked_at_soon_after_a_change_and_rarely_later() {
        let wait = |age: i64| look_again(at(0), at(age), 0.5).as_secs();
        assert_eq!([0, 240, 1200, 100_000].map(wait), [60, 60, 300, 600]);
        assert_eq!(look_again(at(10), at(0), 0.0).as_secs(), 45);
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
