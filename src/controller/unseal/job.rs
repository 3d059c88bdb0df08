//! What the pods of one SealConfig have in common: the spec, and shares that were opened a moment ago.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use jiff::Timestamp;
use tokio::sync::Semaphore;

use crate::{
    api::Reason,
    controller::{
        context::Context,
        open::{Held, open_all},
    },
    seal::{
        Fault, KeyBytes,
        checks::Findings,
        model::{Key, Model},
        observed::{Observed, SourceFacts},
        outcome::Outcomes,
        plan::{Open, open_share},
        unseal::{ShareKind, Unseal},
    },
};

/// Servers of one SealConfig that are spoken to at once.
const AT_ONCE: usize = 16;

/// A share that is open, and the key that it is.
pub type Share = (String, Arc<KeyBytes>);

/// What the pods of one SealConfig have in common. Another spec is another job, and the shares of the old one are wiped.
pub struct Job {
    /// The SealConfig.
    pub model: Model,
    /// Its servers.
    pub unseal: Unseal,
    /// How many are spoken to.
    pub slots: Semaphore,
    inputs: Inputs,
    seen: Mutex<Arc<Seen>>,
    ttl: Duration,
    /// Locked while shares are opened, so that servers that restart together open them once.
    held: tokio::sync::Mutex<BTreeMap<String, Arc<KeyBytes>>>,
}

/// What makes another job.
#[derive(PartialEq)]
struct Inputs {
    uid: String,
    generation: i64,
    shares: Vec<Option<String>>,
    ca: Option<SourceFacts>,
}

/// The world as the last reconcile saw it.
struct Seen {
    observed: Observed,
    findings: Findings,
}

impl Inputs {
    fn new(model: &Model, observed: &Observed, findings: &Findings) -> Self {
        let ca = model.unseal.as_ref().and_then(Unseal::ca);
        Self {
            uid: model.id.uid.clone(),
            generation: model.generation,
            shares: model
                .keys
                .iter()
                .filter(|key| key.is_withheld())
                .map(|share| findings.key_inputs.get(&share.name).cloned())
                .collect(),
            ca: ca.and_then(|ca| observed.sources.get(ca)).cloned(),
        }
    }
}

impl Job {
    /// A new one.
    pub fn new(
        model: &Model,
        unseal: &Unseal,
        observed: &Observed,
        findings: &Findings,
        ttl: Duration,
    ) -> Self {
        Self {
            model: model.clone(),
            unseal: unseal.clone(),
            slots: Semaphore::new(AT_ONCE),
            inputs: Inputs::new(model, observed, findings),
            seen: Mutex::new(Arc::new(Seen {
                observed: observed.clone(),
                findings: findings.clone(),
            })),
            ttl,
            held: tokio::sync::Mutex::default(),
        }
    }

    /// Whether it is the job of this spec and these inputs.
    pub fn is_of(&self, model: &Model, observed: &Observed, findings: &Findings) -> bool {
        self.inputs == Inputs::new(model, observed, findings)
    }

    /// The world has changed around it.
    pub fn refresh(&self, observed: &Observed, findings: &Findings) {
        let seen = Arc::new(Seen {
            observed: observed.clone(),
            findings: findings.clone(),
        });
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = seen;
    }

    /// The certificates of `tls.ca`.
    pub fn ca(&self) -> Option<&[u8]> {
        match &self.inputs.ca {
            Some(SourceFacts::Found(pem)) => Some(pem.bytes()),
            _ => None,
        }
    }

    /// Opens so many shares and no more (security rule S12), or takes those that were opened a moment ago.
    ///
    /// # Errors
    /// Why too few of them open.
    pub async fn shares(
        self: &Arc<Self>,
        context: &Context,
        kind: ShareKind,
        needed: usize,
    ) -> Result<Vec<Share>, Fault> {
        let mut held = self.held.lock().await;
        let mut ready: Vec<Share> = self
            .model
            .shares(kind)
            .filter_map(|share| held.get_key_value(&share.name))
            .take(needed)
            .map(|(name, bytes)| (name.clone(), bytes.clone()))
            .collect();
        if ready.len() == needed {
            return Ok(ready);
        }
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Seen { observed, findings } = &*seen;
        let mut observed = Observed {
            now: Timestamp::now(),
            ..observed.clone()
        };
        let mut rest: Vec<&Key> = self
            .model
            .shares(kind)
            .filter(|share| !held.contains_key(&share.name))
            .collect();
        while ready.len() < needed && !rest.is_empty() {
            // One that does not open is made up for by another.
            let batch: Vec<&Key> = rest.drain(..rest.len().min(needed - ready.len())).collect();
            let opens: Vec<Open> = batch
                .iter()
                .filter_map(|share| open_share(&self.model, share, &observed, findings))
                .collect();
            let (mut stored, mut outcomes) = (Held::new(), Outcomes::default());
            let opened = open_all(
                context,
                &self.model,
                &mut observed,
                findings,
                &opens,
                &mut stored,
                &mut outcomes,
            );
            for (name, key) in opened.await {
                ready.push((name, Arc::new(key.bytes)));
            }
        }
        if ready.len() < needed {
            return Err(self.unopened(&observed, findings, kind, ready.len(), needed));
        }
        if !self.ttl.is_zero() {
            if held.is_empty() {
                tokio::spawn(wipe(Arc::downgrade(self), self.ttl));
            }
            held.extend(ready.iter().cloned());
        }
        Ok(ready)
    }

    fn unopened(
        &self,
        observed: &Observed,
        findings: &Findings,
        kind: ShareKind,
        opened: usize,
        needed: usize,
    ) -> Fault {
        let seals = |share: &Key| {
            self.model.seals.iter().find_map(|seal| {
                let id = (share.name.clone(), seal.name.clone());
                let failed = observed
                    .memory
                    .copies
                    .get(&id)
                    .map(|failure| failure.fault.clone());
                let fault = failed.or_else(|| findings.copies.get(&id).cloned())?;
                Some(fault.of(format_args!("seal {:?}", seal.name)))
            })
        };
        let why = self.model.shares(kind).find_map(|share| {
            let failed = observed
                .memory
                .keys
                .get(&share.name)
                .map(|failure| failure.fault.clone());
            let fault = seals(share).or(failed)?;
            Some(fault.of(format_args!("key {:?}", share.name)))
        });
        why.unwrap_or_else(|| {
            Fault::transient(
                Reason::UnsealKeysMissing,
                format!("only {opened} of the {needed} shares that it asks for could be opened; see the condition KeysUnwrapped"),
            )
        })
    }
}

/// Shares are held so long and no longer.
async fn wipe(job: Weak<Job>, ttl: Duration) {
    tokio::time::sleep(ttl).await;
    if let Some(job) = job.upgrade() {
        job.held.lock().await.clear();
    }
}
