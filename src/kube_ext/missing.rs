//! What is not there, or may not be read, is asked for once for everybody (security rule S19): a thousand SealConfigs may
//! name one ServiceAccount that does not exist.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::seal::{Fault, FaultKind};

/// So long an answer holds, unless a watch shows something else before.
const HOLDS: Duration = Duration::from_secs(30);

/// Answers kept at most.
const MOST: usize = 8192;

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AskedFor {
    /// A Secret.
    Secret,
    /// A ServiceAccount.
    ServiceAccount,
}

type Key = (AskedFor, String, String);

/// Answers that say no.
#[derive(Default)]
pub struct Missing(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    count: u64,
    known: HashMap<Key, Known>,
}

struct Known {
    /// Another one after the object was seen: an answer from before that does not count.
    epoch: u64,
    /// `None` = it is being asked for. Else the answer, and until when it holds.
    no: Option<(No, Instant)>,
}

/// An answer that says no.
#[derive(Clone, Debug, PartialEq, Eq)]
enum No {
    Absent,
    Refused(Fault),
}

impl Missing {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks, unless it is known that the answer is no.
    ///
    /// # Errors
    /// What the question says; a refusal is remembered like an absence, all else is not.
    pub async fn ask<T>(
        &self,
        kind: AskedFor,
        namespace: &str,
        name: &str,
        question: impl Future<Output = Result<Option<T>, Fault>>,
    ) -> Result<Option<T>, Fault> {
        let key = (kind, namespace.to_owned(), name.to_owned());
        let epoch = match self.begin(&key, Instant::now()) {
            Ok(epoch) => epoch,
            Err(No::Absent) => return Ok(None),
            Err(No::Refused(fault)) => return Err(fault),
        };
        let answer = question.await;
        let no = match &answer {
            Ok(None) => Some(No::Absent),
            Err(fault) if fault.kind == FaultKind::Denied => Some(No::Refused(fault.clone())),
            _ => None,
        };
        self.end(&key, epoch, no, Instant::now());
        answer
    }

    fn begin(&self, key: &Key, now: Instant) -> Result<u64, No> {
        let mut inner = self.lock();
        if let Some(known) = inner.known.get(key) {
            match &known.no {
                Some((why, until)) if now < *until => return Err(why.clone()),
                _ => return Ok(known.epoch),
            }
        }
        if inner.known.len() >= MOST {
            let holds = |known: &Known| known.no.as_ref().is_none_or(|(_, until)| now < *until);
            inner.known.retain(|_, known| holds(known));
            if inner.known.len() >= MOST {
                inner.known.clear();
            }
        }
        inner.count += 1;
        let epoch = inner.count;
        inner.known.insert(key.clone(), Known { epoch, no: None });
        Ok(epoch)
    }

    fn end(&self, key: &Key, epoch: u64, no: Option<No>, now: Instant) {
        let mut inner = self.lock();
        let Some(known) = inner.known.get_mut(key).filter(|known| known.epoch == epoch) else {
            return;
        };
        match no {
            Some(why) => known.no = Some((why, now + HOLDS)),
            None => {
                inner.known.remove(key);
            }
        }
    }

    /// The object was seen: what was known of it does not hold any more.
    pub fn appeared(&self, kind: AskedFor, namespace: &str, name: &str) {
        let mut inner = self.lock();
        // Nearly every object that a watch shows is nobody's business.
        if !inner.known.is_empty() {
            inner.known.remove(&(kind, namespace.to_owned(), name.to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::api::Reason;

    const ACCOUNT: AskedFor = AskedFor::ServiceAccount;

    async fn ask(
        missing: &Missing,
        asked: &Cell<u32>,
        answer: Result<Option<u8>, Fault>,
    ) -> Result<Option<u8>, Fault> {
        let question = async {
            asked.set(asked.get() + 1);
            answer
        };
        missing.ask(ACCOUNT, "n", "a", question).await
    }

    #[tokio::test]
    async fn what_is_missing_is_asked_for_once_until_it_appears() {
        let (missing, asked) = (Missing::default(), Cell::new(0));
        for _ in 0..1000 {
            assert_eq!(ask(&missing, &asked, Ok(None)).await, Ok(None));
        }
        assert_eq!(asked.get(), 1);
        missing.appeared(AskedFor::Secret, "n", "a");
        missing.appeared(ACCOUNT, "m", "a");
        ask(&missing, &asked, Ok(None)).await.unwrap();
        assert_eq!(asked.get(), 1, "others appeared");
        missing.appeared(ACCOUNT, "n", "a");
        assert_eq!(ask(&missing, &asked, Ok(Some(7))).await, Ok(Some(7)));
        assert_eq!(
            ask(&missing, &asked, Ok(Some(8))).await,
            Ok(Some(8)),
            "what is there is asked for each time"
        );
        assert!(missing.lock().known.is_empty());
    }

    #[tokio::test]
    async fn a_refusal_is_remembered_and_a_failure_is_not() {
        let (missing, asked) = (Missing::default(), Cell::new(0));
        let failure = Fault::transient(Reason::DeliveryFailed, "no answer");
        for _ in 0..3 {
            assert_eq!(
                ask(&missing, &asked, Err(failure.clone())).await,
                Err(failure.clone())
            );
        }
        assert_eq!(asked.get(), 3);
        let refusal = Fault::denied(Reason::CredentialsMissing, "no right");
        for _ in 0..3 {
            assert_eq!(
                ask(&missing, &asked, Err(refusal.clone())).await,
                Err(refusal.clone())
            );
        }
        assert_eq!(asked.get(), 4);
    }

    #[tokio::test]
    async fn an_answer_from_before_it_appeared_does_not_count() {
        let (missing, asked) = (Missing::default(), Cell::new(0));
        let question = async {
            missing.appeared(ACCOUNT, "n", "a");
            // Somebody else asks meanwhile.
            ask(&missing, &asked, Ok(Some(1))).await.unwrap();
            Ok(None::<u8>)
        };
        missing.ask(ACCOUNT, "n", "a", question).await.unwrap();
        assert_eq!(ask(&missing, &asked, Ok(Some(2))).await, Ok(Some(2)));
    }

    #[test]
    fn an_answer_holds_for_a_while() {
        let (missing, now) = (Missing::default(), Instant::now());
        let key = (ACCOUNT, "n".to_owned(), "a".to_owned());
        let epoch = missing.begin(&key, now).unwrap();
        missing.end(&key, epoch, Some(No::Absent), now);
        assert_eq!(missing.begin(&key, now + HOLDS / 2), Err(No::Absent));
        assert!(missing.begin(&key, now + HOLDS).is_ok());
    }

    #[test]
    fn no_more_is_kept_than_so_much() {
        let (missing, now) = (Missing::default(), Instant::now());
        for index in 0..3 * MOST {
            let key = (ACCOUNT, "n".to_owned(), index.to_string());
            let epoch = missing.begin(&key, now).unwrap();
            missing.end(&key, epoch, Some(No::Absent), now);
        }
        assert!(missing.lock().known.len() <= MOST);
    }
}
