//! Replaces the shares of a set by `sys/rekey` (security rule S11). Until the server has taken the new ones the old ones
//! are in use; the new ones are stored before the server is asked to take them. Stopped anywhere, it is taken up again
//! from the store and from what the server says. Of a cluster only the active server knows of the attempt, and with it that
//! knowledge goes.

use std::{
    collections::{BTreeSet, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;
use tokio::time::timeout;

use super::{
    Name,
    beside::{say, take},
    initialize::{item, same_pod, wrapping_seals},
    job::Job,
    look::states,
    rekeyed::{self, NewShare},
};
use crate::{
    api::Reason,
    controller::{
        context::Context,
        keep::{Hand, random},
    },
    seal::{
        Fault, KeyBytes,
        model::Key,
        observed::{Observed, PodFacts},
        store::{
            Class, StoreFacts, Version,
            rekey::{self, Rekey},
            sets::{self, Initialized},
        },
        unseal::{
            Place, ShareKind, Transport,
            exchange::{SealState, malformed},
            initialize::Split,
            rotate::{Going, Step, all_well, disabled, foreign, neither, refused, split, step, strange},
            share,
        },
    },
    servers::{Connection, NewShares, Rekeyed, TOTAL_TIMEOUT, late},
};

/// The SealConfigs whose shares are being replaced by this process.
#[derive(Default)]
pub struct Rotations(Mutex<HashSet<Name>>);

impl Rotations {
    fn begin(self: &Arc<Self>, name: Name) -> Option<Alone> {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        names.insert(name.clone()).then(|| Alone {
            of: self.clone(),
            name,
        })
    }
}

/// Nobody else replaces the shares of this SealConfig while it lives.
struct Alone {
    of: Arc<Rotations>,
    name: Name,
}

impl Drop for Alone {
    fn drop(&mut self) {
        let mut names = self.of.0.lock().unwrap_or_else(PoisonError::into_inner);
        names.remove(&self.name);
    }
}

/// A server is unsealed, and its shares are to be replaced: does it, if everything is well.
///
/// # Errors
/// What stands in the way.
pub async fn consider(
    context: &Arc<Context>,
    job: &Arc<Job>,
    pod: &PodFacts,
    place: &Place,
    connection: Connection,
    state: &SealState,
) -> Result<(), Fault> {
    if let StoreFacts::NotLooked = &job.seen().observed.store
        && job.unseal.initialize.is_some()
    {
        return Ok(());
    }
    let shamir = job.unseal.initialize.and_then(|initialize| initialize.shamir);
    let is_set = job.rotation().newest.is_some() && job.unseal.transport != Transport::Plain;
    let split = split(shamir, state, is_set)?;
    let Some(cluster) = job.cluster() else {
        return Ok(());
    };
    let name = (job.model.id.namespace.clone(), job.model.id.name.clone());
    let Some(alone) = context.rotations.begin(name) else {
        return Ok(());
    };
    let others = context.unsealers.others(context, job, &pod.uid);
    let others: Vec<_> = others.into_iter().map(|(pod, _)| pod).collect();
    if !all_well(&cluster, &states(context, job, &others).await) {
        return Ok(());
    }
    let work = Work {
        context: context.clone(),
        job: job.clone(),
        pod: pod.clone(),
        place: place.clone(),
        split,
        cluster,
        observed: Observed {
            now: Timestamp::now(),
            ..job.seen().observed.clone()
        },
    };
    // Not ended with this look: what it writes has the pod looked at anew.
    let task = tokio::spawn(async move {
        let _alone = alone;
        work.go_on(connection).await
    });
    match task.await {
        // Something changed a moment ago: it is looked at again.
        Ok(Err(fault)) if fault.reason == Reason::Pending => Ok(()),
        Ok(outcome) => outcome,
        Err(_) => Ok(()),
    }
}

struct Work {
    context: Arc<Context>,
    job: Arc<Job>,
    pod: PodFacts,
    place: Place,
    split: Split,
    cluster: String,
    observed: Observed,
}

/// What came of giving a set to the server.
enum Fed {
    /// It took them, and answered new ones.
    Answered(NewShares),
    /// It did not, with this status.
    Refused(u16),
}

impl Work {
    async fn go_on(self, mut connection: Connection) -> Result<(), Fault> {
        let facts = self.find().await?;
        let held = rekey::of(&facts);
        let going = self.going(&mut connection).await?;
        let wanted = self.job.model.rotate_shares.as_deref();
        let acted_on = rekey::acted_on(&facts);
        let mut next = step(wanted, acted_on, held, &going);
        if next == Step::Cancel {
            self.cancel(&mut connection, &going.nonce).await?;
            next = step(
                wanted,
                acted_on,
                held,
                &Going {
                    started: false,
                    ..going.clone()
                },
            );
        }
        match (next, held) {
            (Step::Nothing | Step::Cancel, _) | (Step::Verify, None) => Ok(()),
            (Step::Foreign, _) => Err(foreign()),
            (Step::Forget, _) => self.forget(held).await,
            (Step::Verify, Some(held)) => {
                let shares = self
                    .job
                    .pending(&self.context, &facts, held, held.pending.len())
                    .await?;
                // What it has seen so far nobody knows.
                let anew = self.asked(connection.rekey_verify_anew(&going.nonce)).await?;
                let Rekeyed::Going(Going { nonce, .. }) = anew else {
                    return Err(strange("does not verify anew"));
                };
                self.verify(&mut connection, &nonce, held, &shares).await
            }
            (Step::Begin(_), Some(held)) if held.is_pending() => {
                self.settle(&mut connection, &facts, held).await
            }
            (Step::Begin(value), _) => self.begin(&mut connection, &facts, value, &going).await,
        }
    }

    async fn find(&self) -> Result<StoreFacts, Fault> {
        let facts = super::record::find(&self.context.client, &self.job.model).await?;
        // The job's shares are those of the set in use.
        let same = rekey::newest(&facts) == self.job.rotation().newest;
        same.then_some(facts)
            .ok_or_else(|| Fault::transient(Reason::Pending, "the wrapped store is read again"))
    }

    async fn asked(&self, asked: impl Future<Output = Result<Rekeyed, Fault>>) -> Result<Rekeyed, Fault> {
        let answer = timeout(TOTAL_TIMEOUT, asked).await.map_err(|_| late())??;
        match answer {
            Rekeyed::Refused(status @ (403..=405)) => Err(disabled(self.job.unseal.product, status)),
            answer => Ok(answer),
        }
    }

    async fn going(&self, connection: &mut Connection) -> Result<Going, Fault> {
        match self.asked(connection.rekey_status()).await? {
            Rekeyed::Going(going) => Ok(going),
            _ => Err(strange("does not say whether a rekey is in progress")),
        }
    }

    /// Nothing is between this and the next share (security rule S10).
    async fn ready(&self) -> Result<(), Fault> {
        same_pod(&self.context, &self.job, &self.pod, &self.place).await
    }

    /// The old shares are asked for new ones.
    async fn begin(
        &self,
        connection: &mut Connection,
        facts: &StoreFacts,
        value: String,
        going: &Going,
    ) -> Result<(), Fault> {
        if !self.context.unsealers.wants(&self.job) {
            return Ok(());
        }
        let seals = wrapping_seals(&self.job);
        sets::fits(&self.job.model, facts, self.split.shares, seals.len())?;
        if let Some((seal, fault)) = seals.iter().find_map(|seal| Some((seal, self.job.barred(seal)?))) {
            return Err(fault.of(format_args!("seal {seal:?}")));
        }
        let old = self
            .job
            .shares(&self.context, ShareKind::Unseal, going.required)
            .await?;
        let mut rekey = Rekey {
            id: data_encoding::HEXLOWER.encode(random(16)?.expose()),
            pod: self.pod.name.clone(),
            value,
            set: sets::next(facts, &self.observed.status.keys),
            at: Timestamp::now(),
            nonce: None,
            settles: false,
            threshold: self.split.threshold,
            pending: std::collections::BTreeMap::new(),
        };
        rekeyed::mark(&self.context, &self.job.model, &self.observed, &rekey, None).await?;
        say(
            &self.job,
            &self.pod,
            "a mark is stored; the server is asked for new shares",
        );
        self.ready().await?;
        let nonce = self.attempt(connection, &mut rekey, false).await?;
        let fed = self
            .feed(connection, &nonce, old.iter().map(|(_, bytes)| &**bytes))
            .await;
        let new = match fed {
            Ok(Fed::Answered(new)) => new,
            Ok(Fed::Refused(status)) => {
                self.still(connection, &nonce).await?;
                self.cancel(connection, &nonce).await?;
                self.forget(Some(&rekey)).await?;
                return Err(refused(status));
            }
            Err(fault) => {
                // The server gets nothing more; if this fails as well, the next look does it.
                let _ = self.cancel(connection, &nonce).await;
                return Err(fault);
            }
        };
        let verification = new.verification.clone();
        let shares = match self.put_aside(new, &mut rekey, &seals).await {
            Ok(shares) => shares,
            Err(fault) => {
                let _ = self.cancel(connection, &nonce).await;
                return Err(fault);
            }
        };
        say(
            &self.job,
            &self.pod,
            "the new shares are stored and read back; the server is asked to take them",
        );
        self.verify(connection, &verification, &rekey, &shares).await
    }

    /// Begins an attempt, and stores its name before anything is given. The name.
    async fn attempt(
        &self,
        connection: &mut Connection,
        rekey: &mut Rekey,
        settles: bool,
    ) -> Result<String, Fault> {
        let before = rekey.clone();
        let begun = match self.asked(connection.rekey_begin(self.split)).await {
            Ok(Rekeyed::Going(going)) => going.name().map(ToOwned::to_owned),
            Ok(_) => return Err(foreign()),
            Err(fault) => return Err(fault),
        };
        let nonce = begun.ok_or_else(|| strange("does not name the attempt"))?;
        rekey.nonce = Some(nonce.clone());
        rekey.settles = settles;
        let (context, model) = (&self.context, &self.job.model);
        if let Err(fault) = rekeyed::mark(context, model, &self.observed, rekey, Some(&before)).await {
            let _ = self.cancel(connection, &nonce).await;
            return Err(fault);
        }
        self.ready().await.map(|()| nonce)
    }

    /// Gives a set to the server under the name of our attempt.
    async fn feed<'s>(
        &self,
        connection: &mut Connection,
        nonce: &str,
        shares: impl Iterator<Item = &'s KeyBytes>,
    ) -> Result<Fed, Fault> {
        for bytes in shares {
            let body = share::body_for(bytes, nonce).ok_or_else(|| malformed("share"))?;
            match self.asked(connection.rekey_feed(body)).await? {
                Rekeyed::Going(going) if going.nonce == nonce => {}
                Rekeyed::Going(_) => return Err(foreign()),
                Rekeyed::Answered(new) => return Ok(Fed::Answered(new)),
                Rekeyed::Refused(status) => return Ok(Fed::Refused(status)),
                Rekeyed::Complete => return Err(strange("answers no shares")),
            }
        }
        Err(strange("asks for more shares than it said"))
    }

    /// Wraps the new shares under every enabled seal and stores them beside those in use.
    async fn put_aside(
        &self,
        new: NewShares,
        rekey: &mut Rekey,
        seals: &[String],
    ) -> Result<Vec<(Key, KeyBytes)>, Fault> {
        if new.shares.len() != usize::from(self.split.shares) {
            return Err(strange("answers another number of shares than it was asked for"));
        }
        let before = rekey.clone();
        let (context, model) = (&*self.context, &self.job.model);
        let mut proven = BTreeSet::new();
        let (mut stored, mut shares) = (Vec::new(), Vec::new());
        for (bytes, number) in new.shares.into_iter().zip(1..) {
            let key = item(Class::UnsealShare, number)?;
            let hand = Hand::new(context, model, &self.observed, &key, proven.clone());
            let mut copies = Vec::new();
            for (seal, result) in hand.wrap_all(rekey.set, &bytes, seals).await {
                let copy = result.map_err(|fault| fault.of(format_args!("seal {seal:?}")))?;
                proven.insert(copy.record.key_id.clone());
                copies.push(copy);
            }
            let version = Version {
                created: Timestamp::now(),
                init: Some(Initialized {
                    id: rekey.id.clone(),
                    pod: rekey.pod.clone(),
                    cluster_id: (number == 1).then(|| self.cluster.clone()),
                }),
                ..hand.version(&bytes)
            };
            stored.push(NewShare {
                name: key.name.clone(),
                version,
                copies,
            });
            shares.push((key, bytes));
        }
        rekeyed::put_aside(context, model, &self.observed, rekey, &before, stored).await?;
        Ok(shares)
    }

    /// Gives new shares back, which makes them the server's, and takes them into use.
    async fn verify(
        &self,
        connection: &mut Connection,
        nonce: &str,
        rekey: &Rekey,
        shares: &[(Key, KeyBytes)],
    ) -> Result<(), Fault> {
        self.ready().await?;
        for (key, bytes) in shares.iter().take(usize::from(rekey.threshold)) {
            let body = share::body_for(bytes, nonce).ok_or_else(|| malformed(&key.name))?;
            match self.asked(connection.rekey_verify(body)).await? {
                Rekeyed::Going(going) if going.nonce == nonce => {}
                Rekeyed::Complete => {
                    rekeyed::take(&self.context, &self.job.model, &self.observed, &rekey.id, shares).await?;
                    self.done("the server has taken the new shares, which are in use now");
                    return Ok(());
                }
                Rekeyed::Going(_) => return Err(foreign()),
                Rekeyed::Refused(_) | Rekeyed::Answered(_) => {
                    return Err(strange("does not take its new shares back"));
                }
            }
        }
        Err(strange("asks for more of its new shares than it said"))
    }

    /// Shares wait, and the server is in no rekey: whether it has taken them is found out by which shares it takes for
    /// another one, which is then ended.
    async fn settle(
        &self,
        connection: &mut Connection,
        facts: &StoreFacts,
        held: &Rekey,
    ) -> Result<(), Fault> {
        let mut rekey = held.clone();
        self.ready().await?;
        let nonce = self.attempt(connection, &mut rekey, true).await?;
        let outcome = self.which(connection, facts, &rekey, &nonce).await;
        self.cancel(connection, &nonce).await?;
        if outcome? {
            take(&self.context, &self.job, &self.observed, &rekey).await?;
            self.done("the server had taken the new shares, which are in use now");
            return Ok(());
        }
        self.forget(Some(&rekey)).await?;
        self.done("the server had not taken the new shares; it is asked for others");
        Ok(())
    }

    /// Whether the shares that wait are the server's, and not those in use.
    async fn which(
        &self,
        connection: &mut Connection,
        facts: &StoreFacts,
        rekey: &Rekey,
        nonce: &str,
    ) -> Result<bool, Fault> {
        let required = self.going(connection).await?.required;
        let old = self.job.shares(&self.context, ShareKind::Unseal, required).await;
        let new = self.job.pending(&self.context, facts, rekey, required).await;
        self.ready().await?;
        if let Ok(old) = &old {
            let bytes = old.iter().map(|(_, bytes)| &**bytes);
            if let Fed::Answered(_) = self.feed(connection, nonce, bytes).await? {
                return Ok(false);
            }
            self.still(connection, nonce).await?;
        }
        match self
            .feed(connection, nonce, new?.iter().map(|(_, bytes)| bytes))
            .await?
        {
            Fed::Answered(_) => Ok(true),
            Fed::Refused(status) => {
                self.still(connection, nonce).await?;
                Err(old.err().unwrap_or_else(|| neither(status)))
            }
        }
    }

    /// A refusal tells something of the shares only while the server is in our attempt.
    async fn still(&self, connection: &mut Connection, nonce: &str) -> Result<(), Fault> {
        let going = self.going(connection).await?;
        if going.nonce == nonce {
            return Ok(());
        }
        Err(strange(
            "does not know the attempt any more, as when another one of its cluster is active now",
        ))
    }

    async fn cancel(&self, connection: &mut Connection, nonce: &str) -> Result<(), Fault> {
        // Older servers end whichever attempt there is: only if it is still this one.
        let going = self.going(connection).await?;
        if !going.started {
            return Ok(());
        }
        if going.nonce != nonce {
            return Err(foreign());
        }
        match self.asked(connection.rekey_cancel(nonce)).await? {
            Rekeyed::Refused(_) => Err(strange("does not cancel the rekey")),
            _ => Ok(()),
        }
    }

    async fn forget(&self, held: Option<&Rekey>) -> Result<(), Fault> {
        let Some(held) = held else {
            return Ok(());
        };
        rekeyed::forget(&self.context, &self.job.model, &self.observed, held).await
    }

    fn done(&self, what: &str) {
        say(&self.job, &self.pod, what);
        let id = &self.job.model.id;
        self.context.look_at(&id.namespace, &id.name);
    }
}
