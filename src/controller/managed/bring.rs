//! Brings the material to one distribution, or takes it back: looks, does the next step, until nothing is left to be done.

use data_encoding::HEXLOWER;
use jiff::Timestamp;
use tokio::sync::Mutex;

use super::{ledger::Ledger, material::wrapping};
use crate::{
    api::{Deletion, KeyDeletionPolicy, Reason},
    controller::{context::Context, keep::random},
    provider::{
        Tenant,
        aws::{Custody, NewKey},
    },
    seal::{
        Fault,
        aws::KeyArn,
        checks::identity_allowed,
        managed::{
            ManagedModel, Wanted, key_spec, key_usage,
            record::Record,
            step::{Goal, KeyState, Next, SETTLES_IN, Sight, Step, Target, retire},
            way,
        },
        model::{Cloud, Seal},
        observed::NamespaceFacts,
    },
};

/// More steps than any distribution takes at once; the rest is done at the next look.
const STEPS: usize = 500;

/// What is to be done with a distribution.
#[derive(Clone, Copy, Debug)]
pub enum Errand<'a> {
    /// The material is brought there.
    Bring(&'a Wanted),
    /// What was brought there is taken back.
    TakeBack(&'a str, Deletion),
}

impl Errand<'_> {
    fn name(&self) -> &str {
        match self {
            Errand::Bring(wanted) => &wanted.name,
            Errand::TakeBack(name, _) => name,
        }
    }
}

/// One distribution at work.
pub struct Hand<'w, 'l> {
    /// What every reconcile shares.
    pub context: &'w Context,
    /// The ManagedKey.
    pub managed: &'w ManagedModel,
    /// What the namespace may do.
    pub facts: &'w NamespaceFacts,
    /// What is written down, shared by all distributions.
    pub ledger: &'w Mutex<Ledger<'l>>,
    /// The time of the reconcile.
    pub now: Timestamp,
    /// The errand.
    pub errand: Errand<'w>,
}

impl Hand<'_, '_> {
    /// Goes on until nothing is left to be done now. Gives back what was seen, and why it is not done.
    pub async fn work(&self) -> (Sight, Option<Fault>) {
        let mut sight = Sight::default();
        // The token of a version that was reserved just now: nothing can have been made with it before.
        let mut fresh = None;
        for _ in 0..STEPS {
            let (record, current) = {
                let ledger = self.ledger.lock().await;
                let current = ledger.sealed().map_or(0, |sealed| sealed.section.current);
                (ledger.record(self.errand.name()), current)
            };
            let step = match self.next(record.as_ref(), current, &sight) {
                Next::Do(step) => step,
                Next::Done => return (sight, None),
                Next::Stop(fault) => return (sight, Some(fault)),
            };
            if !self.context.term.holds() {
                let fault = Fault::transient(Reason::Pending, "another replica leads by now");
                return (sight, Some(fault));
            }
            let home = record
                .as_ref()
                .map_or("", |record| record.region.as_str())
                .to_owned();
            match self.step(&step, record.as_ref(), &mut sight, &mut fresh).await {
                Ok(()) => {
                    if !matches!(step, Step::Look(..) | Step::LookAlias(..)) {
                        sight.done.insert(step);
                    }
                }
                Err(fault) => sight.failed(&home, &step, fault),
            }
        }
        let fault = Fault::transient(Reason::Pending, "much is to be done; the rest follows");
        (sight, Some(fault))
    }

    fn goal<'g>(&self, wanted: &'g Wanted, current: u32) -> Goal<'g> {
        Goal {
            wanted,
            current,
            min_enabled: self.managed.min_enabled,
            now: self.now,
        }
    }

    fn next(&self, record: Option<&Record>, current: u32, sight: &Sight) -> Next {
        match (&self.errand, record) {
            (Errand::Bring(wanted), record) => self.goal(wanted, current).next(record, sight),
            (Errand::TakeBack(_, deletion), Some(record)) => retire(record, deletion.policy, sight),
            (Errand::TakeBack(..), None) => Next::Done,
        }
    }

    async fn step(
        &self,
        step: &Step,
        record: Option<&Record>,
        sight: &mut Sight,
        fresh: &mut Option<u32>,
    ) -> Result<(), Fault> {
        if !matches!(step, Step::Look(..) | Step::LookAlias(..)) {
            self.ledger.lock().await.prove().await?;
        }
        match (step, record) {
            (Step::Reserve, record) => return self.reserve(record, fresh).await,
            (Step::Settle, _) => return self.settle().await,
            _ => {}
        }
        let record = record.ok_or_else(again)?;
        let arn = |version: &u32, region: &str| {
            let key = record.keys.get(version).and_then(|key| key.arn_in(region));
            key.ok_or_else(again)
        };
        match step {
            Step::Reserve | Step::Settle => {}
            Step::Make(version) => {
                let fresh = *fresh == Some(*version);
                self.make(record, *version, fresh, sight).await?;
            }
            Step::Find(version) => self.find(record, *version).await?,
            Step::Look(version, region) => {
                let found = self
                    .custody(record, region)
                    .await?
                    .describe(&arn(version, region)?.to_string())
                    .await?;
                let state = found.map_or(KeyState::Missing, |held| held.state);
                sight.keys.insert((*version, region.clone()), state);
            }
            Step::Import(version, region) => {
                let how = wrapping(self.managed.type_);
                let custody = self.custody(record, region).await?;
                custody
                    .import(&arn(version, region)?, how, async |public| {
                        self.ledger.lock().await.wrap(*version, how, &public).await
                    })
                    .await?;
                tracing::info!(region, version, "material was imported into a key of AWS KMS");
                sight.keys.remove(&(*version, region.clone()));
            }
            Step::Replicate(version, region) => {
                let custody = self.custody(record, &record.region).await?;
                let primary = arn(version, &record.region)?;
                custody
                    .replicate(&primary, region, &self.description(*version), self.tags())
                    .await?;
                sight.keys.remove(&(*version, region.clone()));
            }
            Step::Enable(version, region) => {
                let custody = self.custody(record, region).await?;
                custody.enable(&arn(version, region)?).await?;
                sight.keys.remove(&(*version, region.clone()));
            }
            Step::Disable(version, region) => {
                let custody = self.custody(record, region).await?;
                custody.disable(&arn(version, region)?).await?;
                sight.keys.remove(&(*version, region.clone()));
            }
            Step::CancelDeletion(version, region) => {
                let custody = self.custody(record, region).await?;
                custody.cancel_deletion(&arn(version, region)?).await?;
                sight.keys.remove(&(*version, region.clone()));
            }
            Step::ScheduleDeletion(version, region) => {
                let days = match &self.errand {
                    Errand::TakeBack(_, deletion) => deletion.pending_window_days,
                    Errand::Bring(_) => return Err(again()),
                };
                let custody = self.custody(record, region).await?;
                custody.schedule_deletion(&arn(version, region)?, days).await?;
                sight.keys.remove(&(*version, region.clone()));
            }
            Step::Tag(version, region) => {
                let custody = self.custody(record, region).await?;
                custody.tag(&arn(version, region)?, self.tags()).await?;
            }
            Step::LookAlias(alias, region) => {
                let custody = self.custody(record, region).await?;
                let target = if let Some(held) = custody.describe(alias).await? {
                    Target::Key(held.arn)
                } else {
                    // Not everywhere known, perhaps: our own keys are asked before one is made.
                    Self::pointing(&custody, record, alias, region).await?
                };
                sight.aliases.insert((alias.clone(), region.clone()), target);
            }
            Step::CreateAlias(alias, region, version) => {
                let key = arn(version, region)?;
                self.custody(record, region)
                    .await?
                    .create_alias(alias, &key)
                    .await?;
                sight
                    .aliases
                    .insert((alias.clone(), region.clone()), Target::Key(key));
            }
            Step::MoveAlias(alias, region, version) => {
                let key = arn(version, region)?;
                self.custody(record, region)
                    .await?
                    .move_alias(alias, &key)
                    .await?;
                sight
                    .aliases
                    .insert((alias.clone(), region.clone()), Target::Key(key));
            }
            Step::DeleteAlias(alias, region) => {
                self.custody(record, region).await?.delete_alias(alias).await?;
                sight
                    .aliases
                    .insert((alias.clone(), region.clone()), Target::Nothing);
            }
        }
        Ok(())
    }

    /// The key of ours that an alias points at, as each of them says.
    async fn pointing(
        custody: &Custody,
        record: &Record,
        alias: &str,
        region: &str,
    ) -> Result<Target, Fault> {
        for key in record.keys.values().rev() {
            let Some(arn) = key.arn_in(region) else { continue };
            match custody.has_alias(&arn, alias).await {
                Ok(true) => return Ok(Target::Key(arn)),
                Ok(false) => {}
                Err(fault) if fault.reason == Reason::KeyNotFound => {}
                Err(fault) => return Err(fault),
            }
        }
        Ok(Target::Nothing)
    }

    async fn reserve(&self, record: Option<&Record>, fresh: &mut Option<u32>) -> Result<(), Fault> {
        let Errand::Bring(wanted) = &self.errand else {
            return Err(again());
        };
        let mut ledger = self.ledger.lock().await;
        let current = ledger.sealed().map_or(0, |sealed| sealed.section.current);
        let next = self.goal(wanted, current).reserve(record, &token()?)?;
        if !record.is_some_and(|record| record.keys.contains_key(&current)) {
            *fresh = Some(current);
        }
        let name = wanted.name.clone();
        ledger
            .write(|managed| {
                managed.distributions.insert(name, next);
            })
            .await
    }

    async fn settle(&self) -> Result<(), Fault> {
        let Errand::Bring(wanted) = &self.errand else {
            return Err(again());
        };
        let mut ledger = self.ledger.lock().await;
        let goal = self.goal(wanted, 0);
        ledger
            .write(|managed| {
                if let Some(record) = managed.distributions.get_mut(&wanted.name) {
                    *record = goal.settle(record);
                }
            })
            .await
    }

    /// Makes the key of a version. One that a crash may have left is looked for first, and looked for again when AWS has
    /// had the time to know it everywhere: a second one would never be found.
    async fn make(&self, record: &Record, version: u32, fresh: bool, sight: &mut Sight) -> Result<(), Fault> {
        let custody = self.custody(record, &record.region).await?;
        let key = record.keys.get(&version).ok_or_else(again)?;
        let description = self.description(version);
        let wanted = self.new_key(record, &key.token, &description);
        let found = if fresh { None } else { custody.find(&wanted).await? };
        let made = match found {
            Some(found) => found,
            None if !fresh && self.now.duration_since(key.asked) < SETTLES_IN / 6 => {
                return Err(Fault::transient(
                    Reason::Pending,
                    "the key may have been made before an interruption; it is looked for once more",
                ));
            }
            None => custody.create(&wanted).await?,
        };
        tracing::info!(
            region = record.region,
            version,
            key = made.arn.to_string(),
            "a key of AWS KMS is made"
        );
        self.note(version, &made.arn).await?;
        sight
            .keys
            .insert((version, record.region.clone()), KeyState::PendingImport);
        Ok(())
    }

    async fn find(&self, record: &Record, version: u32) -> Result<(), Fault> {
        let custody = self.custody(record, &record.region).await?;
        let key = record.keys.get(&version).ok_or_else(again)?;
        let description = self.description(version);
        match custody
            .find(&self.new_key(record, &key.token, &description))
            .await?
        {
            Some(found) => self.note(version, &found.arn).await,
            None => Ok(()),
        }
    }

    /// Writes a key's id down.
    async fn note(&self, version: u32, arn: &KeyArn) -> Result<(), Fault> {
        let name = self.errand.name();
        self.ledger
            .lock()
            .await
            .write(|managed| {
                let record = managed.distributions.get_mut(name);
                if let Some(key) = record.and_then(|record| record.keys.get_mut(&version)) {
                    key.arn = Some(arn.to_string());
                }
            })
            .await
    }

    fn new_key<'k>(&'k self, record: &Record, token: &'k str, description: &'k str) -> NewKey<'k> {
        NewKey {
            spec: key_spec(self.managed.type_),
            usage: key_usage(self.managed.usage),
            multi_region: record.multi_region,
            token,
            description,
            tags: self.tags(),
        }
    }

    fn tags(&self) -> &std::collections::BTreeMap<String, String> {
        static NONE: std::collections::BTreeMap<String, String> = std::collections::BTreeMap::new();
        match &self.errand {
            Errand::Bring(wanted) => &wanted.tags,
            Errand::TakeBack(..) => &NONE,
        }
    }

    /// Whose key it is, for people who meet it in AWS.
    fn description(&self, version: u32) -> String {
        format!("ManagedKey {} version {version}", self.managed.model.id)
    }

    /// The way to a region, if the namespace may go it (security rule S3).
    async fn custody(&self, record: &Record, region: &str) -> Result<Custody, Fault> {
        let credentials = match &self.errand {
            Errand::Bring(wanted) => wanted.credentials.as_ref(),
            Errand::TakeBack(..) => record.credentials.as_ref(),
        };
        let way = way(region, credentials, record.account())?;
        let seal = Seal {
            name: self.errand.name().to_owned(),
            priority: 0,
            wraps: false,
            native: false,
            disabled: false,
            cloud: Cloud::Aws(way.clone()),
        };
        identity_allowed(&self.managed.model, &seal, self.facts)?;
        let id = &self.managed.model.id;
        let tenant = Tenant {
            namespace: &id.namespace,
            name: &id.name,
        };
        self.context.clouds.custody(&way, tenant).await
    }
}

/// Whether anything would be taken back.
pub fn takes(policy: KeyDeletionPolicy) -> bool {
    policy != KeyDeletionPolicy::Retain
}

fn token() -> Result<String, Fault> {
    Ok(HEXLOWER.encode(random(16)?.expose()))
}

fn again() -> Fault {
    Fault::transient(
        Reason::Pending,
        "what was decided no longer fits; it is looked at again",
    )
}
