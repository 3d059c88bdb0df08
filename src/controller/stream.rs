//! A watch as a stream that never ends and knows no errors: one that failed is begun anew.

use std::time::{Duration, Instant};

use futures::{StreamExt, stream, stream::BoxStream};
use kube::{
    Api, Resource,
    runtime::watcher::{self, Error, Event, watcher},
};
use serde::de::DeserializeOwned;

use crate::{
    provider,
    seal::fault::{growing, spread},
};

/// Before the second try.
const FIRST: Duration = Duration::from_secs(1);

/// At last, so that an apiserver that was away is followed soon after its return: eight seconds at most, once spread.
const LONGEST: Duration = Duration::from_millis(6400);

/// A watch that goes on failing is told of so often.
const TOLD: Duration = Duration::from_mins(1);

/// What a watch shows. No error leaves it: kube's Controller would hold back everything that it is asked for, for up to a
/// minute, beside the pause that is made here.
pub fn events<K>(api: Api<K>, config: watcher::Config, resource: &'static str) -> BoxStream<'static, Event<K>>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let watch = watcher(api, config).boxed();
    stream::unfold(
        (watch, Failures::default()),
        move |(mut watch, mut failures)| async move {
            loop {
                let error = match watch.next().await? {
                    Ok(event) => {
                        failures.shown(&event);
                        return Some((event, (watch, failures)));
                    }
                    Err(error) => error,
                };
                let step = failures.failed(is_outdated(&error));
                if failures.is_to_be_told(Instant::now()) {
                    // Its text is the server's; the right that is missing is what people need to know.
                    tracing::warn!(
                        "the watch of {resource} failed and is started again; may the operator list and watch them?"
                    );
                }
                // The watches failed in one moment, and are not to come back in one.
                tokio::time::sleep(spread(step, provider::jitter())).await;
            }
        },
    )
    .boxed()
}

/// Whether the apiserver is there, and knows no more what happened since: everything is listed again.
fn is_outdated(error: &Error) -> bool {
    matches!(error, Error::WatchError(status) if status.code == 410)
}

/// Failures in a row.
#[derive(Default)]
struct Failures {
    in_a_row: u32,
    told: Option<Instant>,
}

impl Failures {
    /// How long to wait.
    fn failed(&mut self, is_outdated: bool) -> Duration {
        self.in_a_row = if is_outdated {
            1
        } else {
            self.in_a_row.saturating_add(1)
        };
        growing(FIRST, 2.0, LONGEST, self.in_a_row)
    }

    fn is_to_be_told(&mut self, now: Instant) -> bool {
        let is_due = self
            .told
            .is_none_or(|told| now.saturating_duration_since(told) >= TOLD);
        if is_due {
            self.told = Some(now);
        }
        is_due
    }

    /// A list that has begun may fail still.
    fn shown<K>(&mut self, event: &Event<K>) {
        if !matches!(event, Event::Init | Event::InitApply(_)) {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::{Client, client::Body};

    use super::*;

    fn millis(failures: &mut Failures, count: usize) -> Vec<u128> {
        (0..count).map(|_| failures.failed(false).as_millis()).collect()
    }

    #[test]
    fn a_watch_waits_longer_each_time_up_to_seconds_and_is_quick_again_after_a_success() {
        let mut failures = Failures::default();
        assert_eq!(millis(&mut failures, 5), [1000, 2000, 4000, 6400, 6400]);
        failures.shown(&Event::<()>::Init);
        failures.shown(&Event::InitApply(()));
        assert_eq!(millis(&mut failures, 1), [6400], "the list was not over");
        failures.shown(&Event::<()>::InitDone);
        assert_eq!(millis(&mut failures, 2), [1000, 2000]);
        failures.shown(&Event::Apply(()));
        assert_eq!(millis(&mut failures, 3), [1000, 2000, 4000]);
        assert_eq!(failures.failed(true), FIRST, "who says so is there");
    }

    #[test]
    fn it_is_told_once_and_then_once_a_minute() {
        let (mut failures, start) = (Failures::default(), Instant::now());
        let told = |failures: &mut Failures| {
            (0..150)
                .filter(|second| {
                    failures.failed(false);
                    failures.is_to_be_told(start + Duration::from_secs(*second))
                })
                .count()
        };
        assert_eq!(told(&mut failures), 3);
        failures.shown(&Event::<()>::InitDone);
        assert!(failures.is_to_be_told(start));
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_that_is_refused_is_asked_for_every_few_seconds_and_ends_nothing() {
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = asked.clone();
        let refusal = tower::service_fn(move |_: http::Request<Body>| {
            counted.fetch_add(1, Ordering::Relaxed);
            let text =
                r#"{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","code":403}"#;
            std::future::ready(
                http::Response::builder()
                    .status(403)
                    .body(Body::from(text.as_bytes().to_vec())),
            )
        });
        let api: Api<ConfigMap> = Api::all(Client::new(refusal, "default"));
        let mut events = events(api, watcher::Config::default(), "configmaps")
            .filter(|event| std::future::ready(!matches!(event, Event::Init)));
        let ended = tokio::time::timeout(Duration::from_mins(5), events.next()).await;
        assert!(ended.is_err(), "nothing is shown");
        let asked = asked.load(Ordering::Relaxed);
        assert!((30..=70).contains(&asked), "{asked} times in five minutes");
    }
}
