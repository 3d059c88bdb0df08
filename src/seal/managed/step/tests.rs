//! The steps, carried out on an AWS of plain values.

use super::*;

const HOME: &str = "eu-west-1";
const REPLICA: &str = "us-west-2";

/// What AWS holds, and what was written down.
#[derive(Clone, Default)]
struct Toy {
    record: Option<Record>,
    keys: BTreeMap<(u32, String), KeyState>,
    aliases: BTreeMap<(String, String), KeyArn>,
    steps: Vec<Step>,
    broken: BTreeMap<String, Fault>,
}

fn wanted(alias: Option<&str>, replicas: &[&str]) -> Wanted {
    Wanted {
        name: "eu".into(),
        key_name: "pay".into(),
        region: HOME.into(),
        multi_region: !replicas.is_empty(),
        replica_regions: replicas.iter().map(|region| (*region).to_owned()).collect(),
        tags: BTreeMap::new(),
        alias: alias.map(ToOwned::to_owned),
        credentials: None,
    }
}

fn goal(wanted: &Wanted, current: u32) -> Goal<'_> {
    Goal {
        wanted,
        current,
        min_enabled: 1,
        now: "2026-11-24T00:00:00Z".parse().unwrap(),
    }
}

fn arn(version: u32, region: &str) -> KeyArn {
    format!("arn:aws:kms:{region}:123456789012:key/mrk-{version}")
        .parse()
        .unwrap()
}

impl Toy {
    /// Does steps until none is left, at most `most`.
    fn run(&mut self, goal: &Goal<'_>, most: usize) -> Next {
        let mut sight = Sight::default();
        for _ in 0..most {
            match goal.next(self.record.as_ref(), &sight) {
                Next::Do(step) => self.carry_out(goal, step, &mut sight),
                end => return end,
            }
        }
        Next::Stop(Fault::transient(Reason::Pending, "cut short"))
    }

    fn take_back(&mut self, policy: KeyDeletionPolicy, most: usize) -> Next {
        let mut sight = Sight::default();
        let wanted = wanted(None, &[]);
        for _ in 0..most {
            match retire(self.record.as_ref().unwrap(), policy, &sight) {
                Next::Do(step) => self.carry_out(&goal(&wanted, 1), step, &mut sight),
                end => return end,
            }
        }
        panic!("no end: {:?}", self.steps)
    }

    fn carry_out(&mut self, goal: &Goal<'_>, step: Step, sight: &mut Sight) {
        self.steps.push(step.clone());
        let home = HOME.to_owned();
        if let Some(region) = step.region(HOME)
            && let Some(fault) = self.broken.get(region)
        {
            sight.failed(HOME, &step, fault.clone());
            return;
        }
        match &step {
            Step::Reserve => self.record = Some(goal.reserve(self.record.as_ref(), "token").unwrap()),
            Step::Settle => self.record = Some(goal.settle(self.record.as_ref().unwrap())),
            Step::Make(version) => {
                let record = self.record.as_mut().unwrap();
                record.keys.get_mut(version).unwrap().arn = Some(arn(*version, HOME).to_string());
                self.keys
                    .insert((*version, home.clone()), KeyState::PendingImport);
                sight.keys.insert((*version, home), KeyState::PendingImport);
            }
            Step::Find(_) | Step::Tag(..) => {}
            Step::Look(version, region) => {
                let place = (*version, region.clone());
                let state = self.keys.get(&place).copied().unwrap_or(KeyState::Missing);
                sight.keys.insert(place, state);
            }
            Step::Replicate(version, region) => {
                self.change(sight, *version, region, KeyState::PendingImport);
            }
            Step::Import(version, region) | Step::Enable(version, region) => {
                self.change(sight, *version, region, KeyState::Enabled);
            }
            Step::Disable(version, region) | Step::CancelDeletion(version, region) => {
                self.change(sight, *version, region, KeyState::Disabled);
            }
            Step::ScheduleDeletion(version, region) => {
                self.change(sight, *version, region, KeyState::PendingDeletion);
            }
            Step::LookAlias(alias, region) => {
                let place = (alias.clone(), region.clone());
                let target = self.aliases.get(&place).cloned();
                sight
                    .aliases
                    .insert(place, target.map_or(Target::Nothing, Target::Key));
            }
            Step::CreateAlias(alias, region, version) | Step::MoveAlias(alias, region, version) => {
                let place = (alias.clone(), region.clone());
                assert_eq!(
                    self.keys[&(*version, region.clone())],
                    KeyState::Enabled,
                    "{step:?}"
                );
                self.aliases.insert(place.clone(), arn(*version, region));
                sight.aliases.insert(place, Target::Key(arn(*version, region)));
            }
            Step::DeleteAlias(alias, region) => {
                let place = (alias.clone(), region.clone());
                self.aliases.remove(&place);
                sight.aliases.insert(place, Target::Nothing);
            }
        }
        if !matches!(step, Step::Look(..) | Step::LookAlias(..)) {
            sight.done.insert(step);
        }
    }

    fn change(&mut self, sight: &mut Sight, version: u32, region: &str, state: KeyState) {
        let place = (version, region.to_owned());
        self.keys.insert(place.clone(), state);
        sight.keys.remove(&place);
    }

    fn standard(&self) -> String {
        standard_alias("pay", self.record.as_ref().unwrap().first)
    }
}

#[test]
fn a_version_is_reserved_made_imported_and_only_then_has_its_alias() {
    let wanted = wanted(None, &[]);
    let mut toy = Toy::default();
    assert_eq!(toy.run(&goal(&wanted, 1), 20), Next::Done);
    let alias = toy.standard();
    assert_eq!(
        toy.steps,
        [
            Step::Reserve,
            Step::Make(1),
            Step::Import(1, HOME.into()),
            Step::Look(1, HOME.into()),
            Step::LookAlias(alias.clone(), HOME.into()),
            Step::CreateAlias(alias, HOME.into(), 1),
        ]
    );
}

#[test]
fn cut_short_after_any_step_the_end_is_the_same() {
    let wanted = wanted(Some("alias/pay"), &[REPLICA]);
    let mut whole = Toy::default();
    for version in 1..=3 {
        assert_eq!(whole.run(&goal(&wanted, version), 60), Next::Done);
    }
    let steps = whole.steps.len();
    for cut in 0..steps {
        let (mut toy, mut left) = (Toy::default(), cut);
        for version in 1..=3 {
            let before = toy.steps.len();
            toy.run(&goal(&wanted, version), left);
            left -= toy.steps.len() - before;
            assert_eq!(toy.run(&goal(&wanted, version), 60), Next::Done, "after {cut}");
        }
        assert_eq!(
            (&toy.keys, &toy.aliases),
            (&whole.keys, &whole.aliases),
            "after {cut}"
        );
        let made = toy
            .steps
            .iter()
            .filter(|step| matches!(step, Step::Make(_)))
            .count();
        assert_eq!(made, 3, "after {cut}");
    }
}

#[test]
fn old_versions_stay_enabled_down_to_the_minimum() {
    let wanted = wanted(None, &[]);
    let mut toy = Toy::default();
    for version in 1..=3 {
        toy.run(&goal(&wanted, version), 60);
    }
    assert!(toy.keys.values().all(|state| *state == KeyState::Enabled));
    let raised = Goal {
        min_enabled: 3,
        ..goal(&wanted, 3)
    };
    assert_eq!(toy.run(&raised, 60), Next::Done);
    let states: Vec<_> = toy.keys.values().copied().collect();
    assert_eq!(
        states,
        [KeyState::Disabled, KeyState::Disabled, KeyState::Enabled]
    );
    // Lowered again, they come back.
    assert_eq!(toy.run(&goal(&wanted, 3), 60), Next::Done);
    assert!(toy.keys.values().all(|state| *state == KeyState::Enabled));
}

#[test]
fn an_alias_moves_only_from_a_key_of_ours() {
    let wanted = wanted(Some("alias/pay"), &[]);
    let mut toy = Toy::default();
    toy.run(&goal(&wanted, 1), 60);
    let place = ("alias/pay".to_owned(), HOME.to_owned());
    let foreign: KeyArn = "arn:aws:kms:eu-west-1:123456789012:key/other".parse().unwrap();
    toy.aliases.insert(place.clone(), foreign.clone());
    let Next::Stop(fault) = toy.run(&goal(&wanted, 2), 60) else {
        panic!("it went on")
    };
    assert_eq!(fault.reason, Reason::AliasNotOwned);
    assert_eq!(toy.aliases[&place], foreign);
    // The standard one moved all the same.
    assert_eq!(toy.aliases[&(toy.standard(), HOME.to_owned())], arn(2, HOME));
    // Not wanted any more, it is left where it is, and nobody speaks of it.
    let without = super::super::Wanted {
        alias: None,
        ..wanted
    };
    assert_eq!(toy.run(&goal(&without, 2), 60), Next::Done);
    assert_eq!(toy.aliases[&place], foreign);
}

#[test]
fn a_silent_replica_holds_up_nothing_at_home() {
    let wanted = wanted(None, &[REPLICA]);
    let mut toy = Toy::default();
    toy.run(&goal(&wanted, 1), 60);
    let down = Fault::transient(Reason::KmsUnavailable, "down");
    toy.broken.insert(REPLICA.into(), down.clone());
    let asked = toy.steps.len();
    assert_eq!(toy.run(&goal(&wanted, 2), 60), Next::Stop(down));
    let to_it = toy.steps[asked..]
        .iter()
        .filter(|step| step.region(HOME) == Some(REPLICA));
    assert_eq!(to_it.count(), 1, "it is asked once");
    let place = |region: &str| (toy.standard(), region.to_owned());
    assert_eq!(toy.aliases[&place(HOME)], arn(2, HOME));
    assert_eq!(toy.aliases[&place(REPLICA)], arn(1, REPLICA));
    toy.broken.clear();
    assert_eq!(toy.run(&goal(&wanted, 2), 60), Next::Done);
    assert_eq!(
        toy.aliases[&(toy.standard(), REPLICA.to_owned())],
        arn(2, REPLICA)
    );
}

#[test]
fn a_silent_region_is_told_as_such_when_a_version_is_due_there() {
    let wanted = wanted(None, &[]);
    let mut toy = Toy::default();
    toy.run(&goal(&wanted, 1), 60);
    let down = Fault::transient(Reason::KmsUnavailable, "down");
    toy.broken.insert(HOME.into(), down.clone());
    assert_eq!(toy.run(&goal(&wanted, 2), 60), Next::Stop(down));
}

#[test]
fn what_does_not_show_yet_is_not_done_twice() {
    let wanted = wanted(None, &[]);
    let mut toy = Toy::default();
    toy.run(&goal(&wanted, 1), 2);
    let mut sight = Sight::default();
    sight.keys.insert((1, HOME.into()), KeyState::PendingImport);
    sight.done.insert(Step::Import(1, HOME.into()));
    let Next::Stop(fault) = goal(&wanted, 1).next(toy.record.as_ref(), &sight) else {
        panic!("it went on")
    };
    assert_eq!(fault.reason, Reason::Pending);
}

#[test]
fn nothing_is_made_where_none_of_the_keys_before_is_seen() {
    let wanted = wanted(None, &[]);
    let mut toy = Toy::default();
    toy.run(&goal(&wanted, 1), 60);
    toy.keys.clear();
    let later = Goal {
        now: "2026-12-24T00:00:00Z".parse().unwrap(),
        ..goal(&wanted, 2)
    };
    let Next::Stop(fault) = toy.run(&later, 60) else {
        panic!("it went on")
    };
    assert_eq!(fault.reason, Reason::KeyNotFound);
    assert!(!toy.steps.contains(&Step::Make(2)));
}

#[test]
fn a_deletion_that_somebody_scheduled_is_told_and_ours_is_taken_back() {
    let wanted = wanted(None, &[]);
    let mut toy = Toy::default();
    toy.run(&goal(&wanted, 1), 60);
    toy.keys.insert((1, HOME.into()), KeyState::PendingDeletion);
    let Next::Stop(fault) = toy.run(&goal(&wanted, 1), 60) else {
        panic!("it went on")
    };
    assert_eq!(fault.reason, Reason::KeyPendingDeletion);
    toy.record.as_mut().unwrap().retired = Some(KeyDeletionPolicy::ScheduleDeletion);
    assert_eq!(toy.run(&goal(&wanted, 1), 60), Next::Done);
    assert_eq!(toy.keys[&(1, HOME.into())], KeyState::Enabled);
    assert_eq!(toy.record.unwrap().retired, None);
}

#[test]
fn each_policy_takes_back_what_it_says() {
    let wanted = wanted(Some("alias/pay"), &[REPLICA]);
    let mut made = Toy::default();
    for version in 1..=2 {
        made.run(&goal(&wanted, version), 60);
    }
    let mut kept = made.clone();
    assert_eq!(kept.take_back(KeyDeletionPolicy::Retain, 60), Next::Done);
    assert_eq!((&kept.keys, &kept.aliases), (&made.keys, &made.aliases));
    let mut disabled = made.clone();
    assert_eq!(disabled.take_back(KeyDeletionPolicy::Disable, 60), Next::Done);
    assert!(disabled.keys.values().all(|state| *state == KeyState::Disabled));
    assert_eq!(disabled.aliases, made.aliases);
    let mut deleted = made.clone();
    let place = ("alias/pay".to_owned(), HOME.to_owned());
    let foreign: KeyArn = "arn:aws:kms:eu-west-1:123456789012:key/other".parse().unwrap();
    deleted.aliases.insert(place.clone(), foreign.clone());
    assert_eq!(
        deleted.take_back(KeyDeletionPolicy::ScheduleDeletion, 60),
        Next::Done
    );
    assert!(
        deleted
            .keys
            .values()
            .all(|state| *state == KeyState::PendingDeletion)
    );
    assert_eq!(
        deleted.aliases,
        BTreeMap::from([(place, foreign)]),
        "somebody else's stays"
    );
    // Twice is once.
    let steps = deleted.steps.len();
    assert_eq!(
        deleted.take_back(KeyDeletionPolicy::ScheduleDeletion, 60),
        Next::Done
    );
    let again = &deleted.steps[steps..];
    assert!(
        again
            .iter()
            .all(|step| matches!(step, Step::Look(..) | Step::LookAlias(..))),
        "{again:?}"
    );
}

#[test]
fn the_name_of_a_distribution_is_not_used_for_another_region() {
    let (here, mut elsewhere) = (wanted(None, &[]), wanted(None, &[]));
    elsewhere.region = REPLICA.into();
    let mut toy = Toy::default();
    toy.run(&goal(&here, 1), 60);
    let Next::Stop(fault) = toy.run(&goal(&elsewhere, 1), 60) else {
        panic!("it went on")
    };
    assert_eq!(fault.reason, Reason::InvalidSpec);
}
