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
        open::{Held, open_all, open_version},
    },
    seal::{
        Fault, KeyBytes,
        checks::Findings,
        digest::shares_inputs,
        model::{Key, Model},
        observed::{Observed, SourceFacts},
        outcome::Outcomes,
        plan::{Open, open_share},
        store::{
            Store, StoreFacts, Version,
            proof::{authentic, fits},
            rekey::{self, Rekey},
            sets::{self, Held as HeldSet},
        },
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
    /// Locked while a root token is revoked, so that several servers do not do it at once.
    pub revoking: tokio::sync::Mutex<()>,
}

/// What makes another job.
#[derive(PartialEq)]
struct Inputs {
    uid: String,
    generation: i64,
    shares: Vec<Option<String>>,
    ca: Option<SourceFacts>,
    set: HeldSet,
    token: bool,
    rotation: Rotation,
}

/// What is to be done about the shares that the store holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotation {
    /// The annotation's value.
    pub wanted: Option<String>,
    /// The value that was last acted on.
    acted_on: Option<String>,
    /// The set in use.
    pub newest: Option<u32>,
    /// A rotation that is under way, and whether its shares are stored.
    under_way: Option<(String, bool)>,
}

impl Rotation {
    fn new(model: &Model, store: &StoreFacts) -> Self {
        Self {
            wanted: model.rotate_shares.clone(),
            acted_on: rekey::acted_on(store).map(ToOwned::to_owned),
            newest: rekey::newest(store),
            under_way: rekey::of(store).map(|rekey| (rekey.id.clone(), rekey.is_pending())),
        }
    }

    /// Whether something is to be done.
    pub fn is_due(&self) -> bool {
        self.under_way.is_some() || (self.wanted.is_some() && self.wanted != self.acted_on)
    }
}

/// The world as the last reconcile saw it.
pub struct Seen {
    /// What was observed.
    pub observed: Observed,
    /// What stands in the way.
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
            set: sets::held(model, &observed.store, &observed.status.keys),
            token: sets::token_since(&observed.store).is_some(),
            rotation: Rotation::new(model, &observed.store),
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
            revoking: tokio::sync::Mutex::default(),
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

    /// The world as the last reconcile saw it, at this time.
    pub fn seen(&self) -> Arc<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the store holds of initialisations.
    pub fn set(&self) -> &HeldSet {
        &self.inputs.set
    }

    /// What is to be done about the shares that the store holds.
    pub fn rotation(&self) -> &Rotation {
        &self.inputs.rotation
    }

    /// Opens so many of the new shares that wait beside those in use.
    ///
    /// # Errors
    /// Why too few of them open.
    pub async fn pending(
        &self,
        context: &Context,
        store: &StoreFacts,
        rekey: &Rekey,
        count: usize,
    ) -> Result<Vec<(Key, KeyBytes)>, Fault> {
        let StoreFacts::Found(store) = store else {
            return Err(read_again());
        };
        let view = rekey::view(store, rekey);
        self.some(context, &view, rekey.set, rekey.pending.iter(), count)
            .await
    }

    /// Opens so many shares of a set that was in use before.
    ///
    /// # Errors
    /// Why too few of them open.
    pub async fn former(
        &self,
        context: &Context,
        store: &StoreFacts,
        set: u32,
        count: usize,
    ) -> Result<Vec<(Key, KeyBytes)>, Fault> {
        let StoreFacts::Found(store) = store else {
            return Err(read_again());
        };
        self.some(context, store, set, rekey::shares_of(store, set), count)
            .await
    }

    /// Opens so many of these shares of a set; one that does not open is made up for by another.
    async fn some<'s>(
        &self,
        context: &Context,
        store: &Store,
        set: u32,
        held: impl Iterator<Item = (&'s String, &'s Version)>,
        count: usize,
    ) -> Result<Vec<(Key, KeyBytes)>, Fault> {
        let (mut shares, mut why) = (Vec::with_capacity(count), None);
        for (name, version) in held {
            if shares.len() == count {
                break;
            }
            let key = sets::key(name).ok_or_else(read_again)?;
            let opened = self.open(context, &key, store, set).await;
            match opened.and_then(|bytes| fits(&self.model, &key, Some(version), &bytes).map(|()| bytes)) {
                Ok(bytes) => shares.push((key, bytes)),
                Err(fault) => why = Some(fault),
            }
        }
        if shares.len() == count {
            return Ok(shares);
        }
        Err(why.unwrap_or_else(|| missing(count, shares.len())))
    }

    /// Whether the store holds a root token that is to be revoked.
    pub fn revokes(&self) -> bool {
        let initialize = self.unseal.initialize.as_ref();
        self.inputs.token && initialize.is_some_and(|initialize| !initialize.keep_token)
    }

    /// Why a seal must not be used now, if it must not: its endpoint, or an identity that the namespace may not use.
    pub fn barred(&self, seal: &str) -> Option<Fault> {
        self.seen().findings.seals.get(seal).cloned()
    }

    /// How the cluster is called whose shares these are; `None` = nobody knows yet, or there are none.
    pub fn cluster(&self) -> Option<String> {
        let seen = self.seen();
        let Seen { observed, findings } = &*seen;
        self.model.keys.iter().find(|key| key.is_share())?;
        let stored = sets::cluster_id(&observed.store).map(ToOwned::to_owned);
        let told = || {
            let status = observed.status.unseal.as_ref()?;
            let same = status.shares_digest.as_ref()? == &shares_inputs(&self.model, &findings.key_inputs);
            status.cluster_id.clone().filter(|_| same)
        };
        stored.or_else(told)
    }

    /// The shares that servers are given: those of the newest set, or else those that the user brings.
    fn candidates(&self, observed: &Observed, kind: ShareKind) -> Vec<&Key> {
        let set = sets::newest(self.model.shares(kind), &observed.store);
        if set.is_empty() {
            self.model
                .shares(kind)
                .filter(|share| !share.is_answer())
                .collect()
        } else {
            set
        }
    }

    /// How many shares there are.
    pub fn count(&self, kind: ShareKind) -> usize {
        self.candidates(&self.seen().observed, kind).len()
    }

    /// Opens the root token that the store holds.
    ///
    /// # Errors
    /// Why it does not open.
    pub async fn token(&self, context: &Context) -> Result<KeyBytes, Fault> {
        let seen = self.seen();
        let StoreFacts::Found(store) = &seen.observed.store else {
            return Err(read_again());
        };
        let key = sets::token(&seen.observed.store).ok_or_else(read_again)?;
        let sealed = store.header.keys.get(&key.name).ok_or_else(read_again)?;
        let version = sealed.section.current;
        let bytes = self.open(context, &key, store, version).await?;
        fits(&self.model, &key, sealed.section.versions.get(&version), &bytes)?;
        authentic(&self.model, &key, sealed, &bytes)?;
        Ok(bytes)
    }

    /// Opens a stored version under any seal that may be used.
    async fn open(
        &self,
        context: &Context,
        key: &Key,
        store: &Store,
        version: u32,
    ) -> Result<KeyBytes, Fault> {
        let seen = self.seen();
        let names = self.model.seals.iter().map(|seal| seal.name.clone());
        let (barred, usable): (Vec<_>, Vec<_>) =
            names.partition(|seal| seen.findings.seals.contains_key(seal));
        let opened = open_version(context, &self.model, key, store, version, Some(&usable));
        let (attempts, bytes) = opened.await;
        bytes.ok_or_else(|| {
            let barred = barred.iter().find_map(|seal| {
                let fault = seen.findings.seals.get(seal)?.clone();
                Some(fault.of(format_args!("seal {seal:?}")))
            });
            let mut faults = attempts
                .into_iter()
                .filter_map(|(seal, _, result)| Some(result.err()?.of(format_args!("seal {seal:?}"))));
            faults.next().or(barred).unwrap_or_else(read_again)
        })
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
        let seen = self.seen();
        let Seen { observed, findings } = &*seen;
        let candidates = self.candidates(observed, kind);
        if candidates.len() < needed {
            return Err(missing(needed, candidates.len()));
        }
        let mut ready: Vec<Share> = candidates
            .iter()
            .filter_map(|share| held.get_key_value(&share.name))
            .take(needed)
            .map(|(name, bytes)| (name.clone(), bytes.clone()))
            .collect();
        if ready.len() == needed {
            return Ok(ready);
        }
        let mut observed = Observed {
            now: Timestamp::now(),
            ..observed.clone()
        };
        let mut rest: Vec<&Key> = candidates
            .iter()
            .copied()
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

fn read_again() -> Fault {
    Fault::transient(Reason::Pending, "the wrapped store is read again")
}

fn missing(needed: usize, held: usize) -> Fault {
    Fault::denied(
        Reason::UnsealKeysMissing,
        format!("the server asks for {needed} shares, and there are {held}"),
    )
}

/// Shares are held so long and no longer.
async fn wipe(job: Weak<Job>, ttl: Duration) {
    tokio::time::sleep(ttl).await;
    if let Some(job) = job.upgrade() {
        job.held.lock().await.clear();
    }
}
