//! Which pods read a delivered Secret, and which of them run with what it holds now (`api.md`, meaning 10).

use jiff::{SignedDuration, Timestamp};
use kube::core::SelectorExt;

use super::{
    model::Target,
    observed::{Delivered, PodFacts},
};
use crate::api::PodCounts;

/// How long the kubelet may serve an old copy of a mounted Secret to a container that restarts in a pod
/// that is older than the delivery: its sync period of one minute and half again for its cache.
pub const KUBELET_PROPAGATION: SignedDuration = SignedDuration::from_secs(90);

/// The pods of a target, told apart.
#[derive(Clone, Debug, Default)]
pub struct TargetPods<'a> {
    /// Selected, but their spec does not use the Secret.
    pub not_using: Vec<&'a PodFacts>,
    /// Using the Secret, and running with what it holds now.
    pub current: Vec<&'a PodFacts>,
    /// Using the Secret, but started before.
    pub outdated: Vec<&'a PodFacts>,
}

impl<'a> TargetPods<'a> {
    /// Those that use the Secret.
    pub fn using(&self) -> Vec<&'a PodFacts> {
        self.current.iter().chain(&self.outdated).copied().collect()
    }

    /// For status.
    pub fn counts(&self) -> PodCounts {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let using = self.current.len() + self.outdated.len();
        PodCounts {
            selected: count(using + self.not_using.len()),
            using: count(using),
            current: count(self.current.len()),
        }
    }
}

/// Tells a target's pods apart. Pods that leave do not count.
pub fn pods<'a>(target: &Target, pods: &'a [PodFacts], delivered: &Delivered) -> TargetPods<'a> {
    let mut found = TargetPods::default();
    let Some(selector) = &target.selector else {
        return found;
    };
    for pod in pods
        .iter()
        .filter(|pod| !pod.leaving && selector.matches(&pod.labels))
    {
        if !pod.uses.iter().any(|used| used.secret == target.secret) {
            found.not_using.push(pod);
        } else if is_current(pod, &target.secret, delivered, delivered.content_changed) {
            found.current.push(pod);
        } else {
            found.outdated.push(pod);
        }
    }
    found
}

/// Whether every container that uses the Secret started after `since`, and must have seen the new content.
///
/// On the first delivery there was nothing older to see: a container that runs has it. Later, a container that
/// started within the very second of the change may have started before it, for Kubernetes keeps whole seconds; only
/// a pod whose template carried the counter of this delivery is known to have come after. A container that does not
/// run yet is not current.
fn is_current(pod: &PodFacts, secret: &str, delivered: &Delivered, since: Option<Timestamp>) -> bool {
    let Some(since) = since else { return false };
    let made_after =
        since == delivered.keys_changed.unwrap_or_default() && pod.delivered >= Some(delivered.count);
    let nothing_older = delivered.count <= 1 || made_after;
    let since = whole_second(since);
    let fresh_pod = nothing_older || pod.created.is_some_and(|created| created > since);
    pod.uses.iter().filter(|used| used.secret == secret).all(|used| {
        used.started.is_some_and(|started| {
            if nothing_older {
                started >= since
            } else if used.volume && !fresh_pod {
                started > since.saturating_add(KUBELET_PROPAGATION).unwrap_or(since)
            } else {
                started > since
            }
        })
    })
}

/// Whether a pod runs the keys that its Secret holds now, whatever became of the text beside them.
pub fn has_keys(pod: &PodFacts, secret: &str, delivered: &Delivered) -> bool {
    is_current(pod, secret, delivered, delivered.keys_changed)
}

fn whole_second(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::observed::SecretUse;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn pod(created: i64, started: Option<i64>, volume: bool) -> PodFacts {
        PodFacts {
            created: Some(at(created)),
            uses: vec![SecretUse {
                secret: "s".into(),
                volume,
                started: started.map(at),
            }],
            ..PodFacts::default()
        }
    }

    fn delivered(count: u64) -> Delivered {
        Delivered {
            count,
            content_changed: Some(at(1000)),
            ..Delivered::default()
        }
    }

    fn current(pod: &PodFacts, count: u64) -> bool {
        let delivered = delivered(count);
        is_current(pod, "s", &delivered, delivered.content_changed)
    }

    #[test]
    fn containers_started_after_the_delivery_are_current() {
        assert!(current(&pod(990, Some(1001), false), 2));
        assert!(!current(&pod(990, Some(999), false), 2));
        assert!(!current(&pod(990, None, false), 2));
    }

    #[test]
    fn a_restart_in_an_old_pod_may_still_see_the_old_volume() {
        assert!(!current(&pod(990, Some(1030), true), 2));
        assert!(current(&pod(990, Some(1091), true), 2));
        assert!(current(&pod(1001, Some(1001), true), 2));
    }

    #[test]
    fn within_the_second_of_a_change_only_the_counter_tells() {
        assert!(!current(&pod(1000, Some(1000), false), 2));
        let counted = PodFacts {
            delivered: Some(2),
            ..pod(1000, Some(1000), true)
        };
        let delivered = Delivered {
            keys_changed: Some(at(1000)),
            ..delivered(2)
        };
        assert!(is_current(&counted, "s", &delivered, delivered.keys_changed));
        let before = PodFacts {
            delivered: Some(1),
            ..counted
        };
        assert!(!is_current(&before, "s", &delivered, delivered.keys_changed));
    }

    #[test]
    fn the_first_delivery_leaves_nothing_old_to_see() {
        assert!(current(&pod(900, Some(1001), true), 1));
        assert!(!current(&pod(900, Some(950), true), 1));
    }

    #[test]
    fn nothing_delivered_nothing_current() {
        assert!(!is_current(
            &pod(1, Some(2), false),
            "s",
            &Delivered::default(),
            None
        ));
    }
}
