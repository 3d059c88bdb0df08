//! What is done next in AWS for one distribution. Pure: what was written down and what AWS was seen to say go in, one step
//! comes out. Whatever a crash left behind, the same question is asked again.
//!
//! The order of a version: its token is written down, its key is made (or found again), the key's id is written down, the
//! material is imported, and only then aliases move to it (`protocols.md` 5.2).

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

use super::{
    Wanted,
    record::{KeyRecord, Record},
    standard_alias,
};
use crate::{
    api::{KeyDeletionPolicy, Reason},
    seal::{Fault, FaultKind, aws::KeyArn},
};

/// How long AWS may take to know everywhere what was done (KMS is eventually consistent).
pub const SETTLES_IN: SignedDuration = SignedDuration::from_secs(60);

/// What state a key is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// It can be used.
    Enabled,
    /// It is disabled.
    Disabled,
    /// It has no material.
    PendingImport,
    /// It will be deleted.
    PendingDeletion,
    /// Being made or changed.
    Changing,
    /// In a state in which nothing can be done with it.
    Unusable,
    /// AWS knows no such key.
    Missing,
}

impl KeyState {
    /// The word in status.
    pub const fn as_str(self) -> &'static str {
        match self {
            KeyState::Enabled => "Enabled",
            KeyState::Disabled => "Disabled",
            KeyState::PendingImport => "PendingImport",
            KeyState::PendingDeletion => "PendingDeletion",
            KeyState::Changing => "Updating",
            KeyState::Unusable => "Unavailable",
            KeyState::Missing => "Missing",
        }
    }
}

/// One thing to do, or to look at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Write down what will be made: regions, aliases, and the token of the version in use.
    Reserve,
    /// Make the key of a version, or find the one that was made before a crash, and write its id down.
    Make(u32),
    /// Find the key of a version that was made before a crash, if there is one, and write its id down.
    Find(u32),
    /// Ask for the state of a version's key in a region.
    Look(u32, String),
    /// Import the material.
    Import(u32, String),
    /// Replicate the key into a region.
    Replicate(u32, String),
    /// Enable the key.
    Enable(u32, String),
    /// Disable the key.
    Disable(u32, String),
    /// Take back a deletion that we had scheduled.
    CancelDeletion(u32, String),
    /// Have the key deleted after the window.
    ScheduleDeletion(u32, String),
    /// Set the tags of the spec.
    Tag(u32, String),
    /// Ask what an alias points at.
    LookAlias(String, String),
    /// Make an alias for a version.
    CreateAlias(String, String, u32),
    /// Point an alias of ours, which points at a key of ours, at a version.
    MoveAlias(String, String, u32),
    /// Delete an alias of ours that points at a key of ours.
    DeleteAlias(String, String),
    /// Write down that tags are set, aliases gone, and a deletion taken back.
    Settle,
}

impl Step {
    /// The region that is spoken to.
    fn region<'s>(&'s self, home: &'s str) -> Option<&'s str> {
        match self {
            Step::Reserve | Step::Settle => None,
            // A replica is made by its primary.
            Step::Make(_) | Step::Find(_) | Step::Replicate(..) => Some(home),
            Step::Look(_, region)
            | Step::Import(_, region)
            | Step::Enable(_, region)
            | Step::Disable(_, region)
            | Step::CancelDeletion(_, region)
            | Step::ScheduleDeletion(_, region)
            | Step::Tag(_, region)
            | Step::LookAlias(_, region)
            | Step::CreateAlias(_, region, _)
            | Step::MoveAlias(_, region, _)
            | Step::DeleteAlias(_, region) => Some(region),
        }
    }
}

/// What an alias points at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// There is no such alias.
    Nothing,
    /// This key.
    Key(KeyArn),
}

/// What AWS was seen to say since this look began.
#[derive(Clone, Debug, Default)]
pub struct Sight {
    /// By version and region.
    pub keys: BTreeMap<(u32, String), KeyState>,
    /// By alias and region.
    pub aliases: BTreeMap<(String, String), Target>,
    /// Steps that were done.
    pub done: BTreeSet<Step>,
    /// Steps that failed.
    pub failed: BTreeMap<Step, Fault>,
    /// Regions that do not answer, or whose credentials do not work.
    pub down: BTreeMap<String, Fault>,
}

impl Sight {
    /// A step failed.
    pub fn failed(&mut self, home: &str, step: &Step, fault: Fault) {
        if let Some(region) = step.region(home)
            && closes(&fault)
        {
            self.down.insert(region.to_owned(), fault.clone());
        }
        self.failed.insert(step.clone(), fault);
    }
}

/// Whether the fault is one that the next call to the same region would meet as well.
fn closes(fault: &Fault) -> bool {
    fault.kind == FaultKind::Throttled
        || matches!(
            fault.reason,
            Reason::KmsUnavailable
                | Reason::EndpointUnresolvable
                | Reason::EndpointTlsFailed
                | Reason::CredentialsMissing
                | Reason::CredentialsExpired
                | Reason::CredentialsRejected
                | Reason::ServiceAccountMissing
                | Reason::RoleAnnotationMissing
                | Reason::TokenRequestDenied
                | Reason::WebIdentityRejected
                | Reason::OperatorIdentityNotAllowed
                | Reason::ClockSkew
        )
}

/// What is done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// This.
    Do(Step),
    /// Nothing: all is as it should be.
    Done,
    /// Nothing more now, and why.
    Stop(Fault),
}

/// Why a branch of the work goes no further now.
enum Branch {
    Do(Step),
    Fault(Fault),
}

/// What should be.
#[derive(Clone, Copy, Debug)]
pub struct Goal<'a> {
    /// The distribution, as the spec has it.
    pub wanted: &'a Wanted,
    /// The version in use.
    pub current: u32,
    /// Versions below are disabled.
    pub min_enabled: u32,
    /// The time.
    pub now: Timestamp,
}

impl Goal<'_> {
    /// The record with everything that is to be made written down. `token` is used if the version in use has none.
    ///
    /// # Errors
    /// `InvalidSpec` for a name that was used for another region.
    pub fn reserve(&self, record: Option<&Record>, token: &str) -> Result<Record, Fault> {
        let wanted = self.wanted;
        let mut next = record.cloned().unwrap_or_else(|| Record {
            region: wanted.region.clone(),
            multi_region: wanted.multi_region,
            replica_regions: BTreeSet::new(),
            credentials: None,
            first: self.now.as_second(),
            tags: wanted.tags.clone(),
            aliases: BTreeSet::new(),
            keys: BTreeMap::new(),
            retired: None,
        });
        if next.region != wanted.region || next.multi_region != wanted.multi_region {
            return Err(Fault::invalid_spec(format!(
                "a distribution of this name brought the key to region {} ({}) before; give this one another name",
                next.region,
                if next.multi_region {
                    "multi-Region keys"
                } else {
                    "single-Region keys"
                }
            )));
        }
        next.replica_regions
            .extend(wanted.replica_regions.iter().cloned());
        next.credentials.clone_from(&wanted.credentials);
        next.aliases.extend(wanted.aliases(next.first));
        next.keys.entry(self.current).or_insert_with(|| KeyRecord {
            token: token.to_owned(),
            asked: self.now,
            arn: None,
        });
        Ok(next)
    }

    /// The record once AWS is as it should be.
    pub fn settle(&self, record: &Record) -> Record {
        let mut next = record.clone();
        next.aliases = self.wanted.aliases(next.first).collect();
        next.tags.clone_from(&self.wanted.tags);
        next.retired = None;
        next
    }

    /// What is done next to bring the material there.
    pub fn next(&self, record: Option<&Record>, sight: &Sight) -> Next {
        let reserved = match self.reserve(record, "") {
            Ok(reserved) => reserved,
            Err(fault) => return Next::Stop(fault),
        };
        let Some(record) = record.filter(|record| **record == reserved) else {
            return match attempt(sight, "", Step::Reserve) {
                Branch::Do(step) => Next::Do(step),
                Branch::Fault(fault) => Next::Stop(fault),
            };
        };
        let mut faults = Vec::new();
        let mut usable = BTreeSet::new();
        for (version, key) in &record.keys {
            for region in record.regions() {
                match self.key(record, *version, key, region, sight) {
                    Ok(()) if *version == self.current => {
                        usable.insert(region);
                    }
                    Ok(()) => {}
                    Err(Branch::Do(step)) => return Next::Do(step),
                    Err(Branch::Fault(fault)) => faults.push(fault),
                }
            }
        }
        let wanted: BTreeSet<String> = self.wanted.aliases(record.first).collect();
        for region in usable {
            for alias in &record.aliases {
                let outcome = if wanted.contains(alias) {
                    self.alias(record, alias, region, sight)
                } else {
                    take_alias(record, alias, region, sight)
                };
                match outcome {
                    Ok(()) => {}
                    Err(Branch::Do(step)) => return Next::Do(step),
                    Err(Branch::Fault(fault)) => faults.push(fault),
                }
            }
        }
        // What only a human can mend is told before what passes by itself, and that before what only waits for it.
        faults.sort_by_key(|fault| (std::cmp::Reverse(fault.kind), fault.reason == Reason::Pending));
        if let Some(fault) = faults.into_iter().next() {
            return Next::Stop(fault);
        }
        if self.settle(record) != *record {
            return match attempt(sight, &record.region, Step::Settle) {
                Branch::Do(step) => Next::Do(step),
                Branch::Fault(fault) => Next::Stop(fault),
            };
        }
        Next::Done
    }

    fn key(
        &self,
        record: &Record,
        version: u32,
        key: &KeyRecord,
        region: &String,
        sight: &Sight,
    ) -> Result<(), Branch> {
        let home = *region == record.region;
        let go = |step: Step| Err(attempt(sight, &record.region, step));
        if key.arn.is_none() {
            if !home {
                return Ok(());
            }
            Self::may_make(record, sight)?;
            return go(Step::Make(version));
        }
        let place = (version, region.clone());
        let Some(state) = sight.keys.get(&place) else {
            return go(Step::Look(version, region.clone()));
        };
        let name = key.arn_in(region).map_or_else(String::new, |arn| arn.to_string());
        let wanted = version == self.current || version >= self.min_enabled;
        let at = || region.clone();
        match state {
            KeyState::Enabled if !wanted => go(Step::Disable(version, at())),
            KeyState::Disabled if wanted => go(Step::Enable(version, at())),
            KeyState::Enabled | KeyState::Disabled if record.tags != self.wanted.tags => {
                // Set once; a second look need not see them.
                if sight.done.contains(&Step::Tag(version, at())) {
                    Ok(())
                } else {
                    go(Step::Tag(version, at()))
                }
            }
            KeyState::Enabled | KeyState::Disabled => Ok(()),
            // Below minEnabledVersion nobody needs it.
            KeyState::PendingImport | KeyState::PendingDeletion | KeyState::Missing if !wanted => Ok(()),
            KeyState::PendingImport => go(Step::Import(version, at())),
            KeyState::PendingDeletion if record.retired == Some(KeyDeletionPolicy::ScheduleDeletion) => {
                go(Step::CancelDeletion(version, at()))
            }
            KeyState::PendingDeletion => Err(Branch::Fault(Fault::denied(
                Reason::KeyPendingDeletion,
                format!(
                    "somebody scheduled the deletion of {name}, the key of version {version}; cancel it (aws kms \
                     cancel-key-deletion --region {region} --key-id …) and it is enabled again, or raise minEnabledVersion \
                     above {version}"
                ),
            ))),
            KeyState::Missing if !home && self.wanted.replica_regions.contains(region) => {
                let primary = sight.keys.get(&(version, record.region.clone()));
                if primary == Some(&KeyState::Enabled) {
                    go(Step::Replicate(version, at()))
                } else {
                    Err(Branch::Fault(Fault::transient(
                        Reason::Pending,
                        format!(
                            "version {version} is replicated into region {region} once its primary key is Enabled"
                        ),
                    )))
                }
            }
            KeyState::Missing if !home => Ok(()),
            KeyState::Missing if self.now.duration_since(key.asked) < SETTLES_IN => {
                Err(Branch::Fault(Fault::transient(
                    Reason::Pending,
                    format!("AWS does not know {name} everywhere yet"),
                )))
            }
            KeyState::Missing => Err(Branch::Fault(Fault::denied(
                Reason::KeyNotFound,
                format!(
                    "the key of version {version}, {name}, does not exist any more, and what only it opens is lost; rotate, or \
                     raise minEnabledVersion above {version} if nobody needs it"
                ),
            ))),
            KeyState::Changing => Err(Branch::Fault(Fault::transient(
                Reason::Pending,
                format!("AWS is changing {name}, the key of version {version}; it is looked at again"),
            ))),
            KeyState::Unusable => Err(Branch::Fault(Fault::denied(
                Reason::KeyUnusable,
                format!(
                    "{name}, the key of version {version}, is in no state in which it can be used; look at it"
                ),
            ))),
        }
    }

    /// An identity of another account sees none of our keys, and would make the next one there.
    fn may_make(record: &Record, sight: &Sight) -> Result<(), Branch> {
        let made = record.keys.iter().filter(|(_, key)| key.arn.is_some());
        let mut states = made.map(|(version, _)| sight.keys.get(&(*version, record.region.clone())));
        let mut missing = false;
        let seen = states.any(|state| {
            missing |= state == Some(&KeyState::Missing);
            state.is_some_and(|state| *state != KeyState::Missing)
        });
        if seen || record.keys.values().all(|key| key.arn.is_none()) {
            return Ok(());
        }
        if !missing {
            // Why none was seen is told of those.
            return Err(Branch::Fault(Fault::transient(
                Reason::Pending,
                "the next key is made once one of those before is seen",
            )));
        }
        Err(Branch::Fault(Fault::denied(
            Reason::KeyNotFound,
            format!(
                "none of the keys that were made in region {} before is seen with these credentials, so no new one is made; \
                 check whose account they lead to",
                record.region
            ),
        )))
    }

    fn alias(&self, record: &Record, alias: &str, region: &str, sight: &Sight) -> Result<(), Branch> {
        let place = (alias.to_owned(), region.to_owned());
        let go = |step: Step| Err(attempt(sight, &record.region, step));
        match sight.aliases.get(&place) {
            None => go(Step::LookAlias(place.0, place.1)),
            Some(Target::Nothing) => go(Step::CreateAlias(place.0, place.1, self.current)),
            Some(Target::Key(arn)) => match record.version_of(arn) {
                Some(version) if version == self.current => Ok(()),
                Some(_) => go(Step::MoveAlias(place.0, place.1, self.current)),
                None => Err(Branch::Fault(not_owned(alias, region))),
            },
        }
    }
}

/// What is done next to take back what was brought there. `Retain` takes nothing back.
pub fn retire(record: &Record, policy: KeyDeletionPolicy, sight: &Sight) -> Next {
    if policy == KeyDeletionPolicy::Retain {
        return Next::Done;
    }
    let deletes = policy == KeyDeletionPolicy::ScheduleDeletion;
    let mut faults = Vec::new();
    let mut outcomes = Vec::new();
    if deletes {
        for region in record.regions() {
            for alias in &record.aliases {
                outcomes.push(take_alias(record, alias, region, sight));
            }
        }
    }
    for (version, key) in &record.keys {
        // Replicas before their primary.
        for region in record.replica_regions.iter().chain([&record.region]) {
            outcomes.push(take_key(record, *version, key, region, deletes, sight));
        }
    }
    for outcome in outcomes {
        match outcome {
            Ok(()) => {}
            Err(Branch::Do(step)) => return Next::Do(step),
            Err(Branch::Fault(fault)) => faults.push(fault),
        }
    }
    faults.into_iter().next().map_or(Next::Done, Next::Stop)
}

fn take_key(
    record: &Record,
    version: u32,
    key: &KeyRecord,
    region: &str,
    deletes: bool,
    sight: &Sight,
) -> Result<(), Branch> {
    let go = |step: Step| Err(attempt(sight, &record.region, step));
    if key.arn.is_none() {
        // Its creation may have been cut short before its id was written down.
        let find = Step::Find(version);
        return if !deletes || region != record.region || sight.done.contains(&find) {
            Ok(())
        } else {
            go(find)
        };
    }
    match sight.keys.get(&(version, region.to_owned())) {
        None => go(Step::Look(version, region.to_owned())),
        Some(KeyState::Enabled | KeyState::Disabled | KeyState::PendingImport | KeyState::Unusable)
            if deletes =>
        {
            go(Step::ScheduleDeletion(version, region.to_owned()))
        }
        Some(KeyState::Enabled) => go(Step::Disable(version, region.to_owned())),
        Some(KeyState::Changing) => Err(Branch::Fault(Fault::transient(
            Reason::Pending,
            format!("AWS is changing the key of version {version} in region {region}; it is looked at again"),
        ))),
        Some(_) => Ok(()),
    }
}

fn take_alias(record: &Record, alias: &str, region: &str, sight: &Sight) -> Result<(), Branch> {
    let place = (alias.to_owned(), region.to_owned());
    let go = |step: Step| Err(attempt(sight, &record.region, step));
    match sight.aliases.get(&place) {
        None => go(Step::LookAlias(place.0, place.1)),
        Some(Target::Key(arn)) if record.version_of(arn).is_some() => go(Step::DeleteAlias(place.0, place.1)),
        // Gone, or somebody else's: not ours to delete.
        Some(_) => Ok(()),
    }
}

/// A step, unless it was done or failed before in this look.
fn attempt(sight: &Sight, home: &str, step: Step) -> Branch {
    if let Some(fault) = sight.failed.get(&step) {
        return Branch::Fault(fault.clone());
    }
    if let Some(fault) = step.region(home).and_then(|region| sight.down.get(region)) {
        return Branch::Fault(fault.clone());
    }
    if sight.done.contains(&step) {
        return Branch::Fault(Fault::transient(
            Reason::Pending,
            "what was done does not show yet; it is looked at again",
        ));
    }
    Branch::Do(step)
}

fn not_owned(alias: &str, region: &str) -> Fault {
    Fault::denied(
        Reason::AliasNotOwned,
        format!(
            "{alias} in region {region} points at a key that this ManagedKey did not make, so it is not moved; delete it there, \
             or choose another aliasName"
        ),
    )
}

impl Wanted {
    /// The aliases that should be. `first`: when the key was first brought there.
    pub fn aliases(&self, first: i64) -> impl Iterator<Item = String> {
        [Some(standard_alias(&self.key_name, first)), self.alias.clone()]
            .into_iter()
            .flatten()
    }
}

#[cfg(test)]
mod tests;
