//! The faults, as they are done and undone.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use data_encoding::BASE64;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::{sync::mpsc, task::JoinHandle};

use super::{
    acts::{Act, schedule},
    cluster::Cluster,
    crew::Crew,
    etcd,
    ledger::{FOREIGN, FORGED, Ledger},
    link::{Link, Weather},
    vault::{SHARES, VAULT, Vault, answered},
    world::{ACCESS_SECRET, Cloud, SEALS, Wanted, behind},
};
use crate::support::{
    drill::header,
    kms::Act as Answer,
    stage::{Stage, condition, data_of, random, speaks_of_now},
};

/// How long one waits for a store that was deleted.
const STORE_COMES_BACK: Duration = Duration::from_mins(1);

/// What makes good what was done.
#[derive(Clone, Copy, Debug)]
enum Undo {
    Thaw(usize),
    ApiFair(usize),
    KmsFair(usize),
    KmsHeals(usize),
    KeyEnabled(usize),
    VaultThaws,
    VaultFair,
    VaultIsBack,
    ClockIsRight(usize),
}

/// Everything that takes part.
pub struct Campaign {
    pub(super) seed: u64,
    pub(super) cluster: Cluster,
    pub(super) stage: Stage,
    pub(super) clouds: [Cloud; 2],
    pub(super) vault: Vault,
    apis: [Link; 2],
    pub(super) crew: Crew,
    pub(super) wanted: Vec<Wanted>,
    ledger: Arc<Mutex<Ledger>>,
    undo: Vec<(Instant, Undo)>,
    pub(super) acts: BTreeMap<String, usize>,
    step: usize,
    began: Instant,
    readers: [JoinHandle<()>; 2],
}

impl Drop for Campaign {
    fn drop(&mut self) {
        for reader in &self.readers {
            reader.abort();
        }
    }
}

impl Campaign {
    /// Sets all up and waits until every SealConfig has delivered.
    pub async fn start(seed: u64) -> Self {
        println!("chaos: seed {seed}");
        let cluster = Cluster::start().await;
        let stage = Stage {
            plane: cluster.plane.clone(),
            namespace: "chaos".to_owned(),
        };
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": stage.namespace}});
        stage.plane.apply(&namespace).await;
        let clouds = [Cloud::start(seed ^ 1).await, Cloud::start(seed ^ 2).await];
        let on_node = Stage {
            plane: cluster.plane.clone(),
            namespace: stage.namespace.clone(),
        };
        let vault = Vault::start(on_node, seed ^ 5).await;
        let apis = [
            Link::before(cluster.port(), seed ^ 3).await,
            Link::before(cluster.port(), seed ^ 4).await,
        ];
        let crew = Crew::start(
            &stage,
            [&apis[0], &apis[1]].map(|link| cluster.kubeconfig(link.port())),
            [&clouds[0].link, &clouds[1].link],
        );
        let ledger = Arc::new(Mutex::new(Ledger::new(&stage.namespace)));
        let (sink, mut source) = mpsc::unbounded_channel();
        let judge = ledger.clone();
        let readers = [
            tokio::spawn(etcd::follow(cluster.etcd_url().to_owned(), sink)),
            tokio::spawn(async move {
                while let Some(written) = source.recv().await {
                    judge
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .take(&written);
                }
            }),
        ];
        let mut campaign = Self {
            seed,
            cluster,
            stage,
            clouds,
            vault,
            apis,
            crew,
            wanted: vec![
                Wanted::new("made-a", true, 0),
                Wanted::new("made-b", true, 0),
                Wanted::new("brought-a", false, 1),
                Wanted::new("brought-b", false, 2),
                Wanted::new("both", true, 2),
            ],
            ledger,
            undo: Vec::new(),
            acts: BTreeMap::new(),
            step: 0,
            began: Instant::now(),
            readers,
        };
        campaign.credentials().await;
        for which in 0..campaign.wanted.len() {
            campaign.renew(which).await;
        }
        let spec = campaign.vault.spec(&campaign.clouds);
        campaign.stage.apply(VAULT, &spec).await;
        campaign.settle("the start").await;
        campaign.fill_the_vault().await;
        campaign
    }

    /// Takes note of what the Vault answered, and puts something into it that must stay there.
    async fn fill_the_vault(&mut self) {
        for at in 0..=SHARES {
            let what = answered(at);
            let what: Vec<&str> = what.iter().map(String::as_str).collect();
            let done = self.unwrap(VAULT, SEALS[0], &what).await;
            self.vault.answers.push(String::from_utf8(done.ok()).unwrap());
        }
        self.vault.fill().await;
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What must be known to repeat it.
    pub(super) fn place(&self) -> String {
        let after = self.began.elapsed().as_secs_f64();
        format!("seed {}, step {}, {after:.1} s", self.seed, self.step)
    }

    /// Ends at the first thing that is not right.
    pub(super) fn hold(&self) {
        assert_eq!(
            self.vault.misled(),
            0,
            "chaos: VIOLATION at {}: a server was asked that is not the Vault",
            self.place()
        );
        let violations = &self.ledger().violations;
        assert!(
            violations.is_empty(),
            "chaos: VIOLATION at {}: {violations:#?}",
            self.place()
        );
    }

    /// Does what the seed says, for so long.
    pub async fn suffer(&mut self, length: Duration) {
        self.began = Instant::now();
        for (number, step) in schedule(self.seed, length, self.wanted.len())
            .into_iter()
            .enumerate()
        {
            while self.began.elapsed() < step.at {
                self.tend();
                let left = step.at.saturating_sub(self.began.elapsed());
                tokio::time::sleep(left.min(Duration::from_millis(50))).await;
            }
            self.step = number + 1;
            let done = self.perform(&step.act).await;
            let skipped = if done { "" } else { " (nothing to do it to)" };
            println!("chaos: {}: {:?}{skipped}", self.place(), step.act);
            if done {
                *self.acts.entry(step.act.word()).or_default() += 1;
            }
            self.hold();
        }
    }

    /// Makes good everything, and waits until all is well.
    pub async fn recover(&mut self) {
        let now = Instant::now();
        for (due, _) in &mut self.undo {
            *due = now;
        }
        self.tend();
        println!("chaos: {}: the faults end", self.place());
        self.settle("the end").await;
    }

    /// Undoes what is due, and starts again what has ended.
    fn tend(&mut self) {
        let now = Instant::now();
        let due: Vec<Undo> = self
            .undo
            .extract_if(.., |(due, _)| *due <= now)
            .map(|(_, undo)| undo)
            .collect();
        for undo in due {
            match undo {
                Undo::Thaw(which) => self.crew.signal(which, Signal::CONT),
                Undo::ApiFair(which) => self.apis[which].set(Weather::Fair),
                Undo::KmsFair(which) => self.clouds[which].link.set(Weather::Fair),
                Undo::KmsHeals(which) => {
                    self.clouds[which].kms.heal();
                    self.clouds[which].kms.limit(None);
                }
                Undo::KeyEnabled(which) => {
                    let (cloud, key) = behind(&self.clouds, SEALS[which]);
                    cloud.kms.set_state(key, "Enabled");
                }
                Undo::VaultThaws => self.vault.signal(Signal::CONT),
                Undo::VaultFair => self.vault.link.set(Weather::Fair),
                Undo::VaultIsBack => self.vault.is_replaced(false),
                Undo::ClockIsRight(which) => {
                    self.crew.set_clock(which, 0);
                }
            }
        }
        self.crew.tend();
        self.cluster.tend();
        self.vault.tend();
    }

    async fn tend_for_a_moment(&mut self) {
        self.tend();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    fn later(&mut self, after: Duration, undo: Undo) {
        self.undo.push((Instant::now() + after, undo));
    }

    async fn credentials(&self) {
        self.stage
            .credentials("aws", "AKIACHAOSCHAOSCHAOS0", ACCESS_SECRET)
            .await;
    }

    /// Whether it was done.
    async fn perform(&mut self, act: &Act) -> bool {
        match act {
            Act::KillReplica(which) => self.crew.kill(*which),
            Act::EndReplica(which) => self.crew.signal(*which, Signal::TERM),
            Act::FreezeReplica(which, long) => {
                self.crew.signal(*which, Signal::STOP);
                self.later(*long, Undo::Thaw(*which));
            }
            Act::KillApiserver => self.cluster.apiserver.restart(),
            Act::KillEtcd => self.cluster.etcd.restart(),
            Act::FreezeApiserver(short) => {
                self.cluster.apiserver.signal(Signal::STOP);
                tokio::time::sleep(*short).await;
                self.cluster.apiserver.signal(Signal::CONT);
            }
            Act::FreezeEtcd(short) => {
                self.cluster.etcd.signal(Signal::STOP);
                tokio::time::sleep(*short).await;
                self.cluster.etcd.signal(Signal::CONT);
            }
            Act::ApiWeather(which, weather, long) => {
                self.apis[*which].set(*weather);
                self.later(*long, Undo::ApiFair(*which));
            }
            Act::ApiCut(which) => self.apis[*which].cut(),
            Act::KmsWeather(which, weather, long) => {
                self.clouds[*which].link.set(*weather);
                self.later(*long, Undo::KmsFair(*which));
            }
            Act::KmsCut(which) => self.clouds[*which].link.cut(),
            Act::KmsAnswers(which, answer, long) => self.answers(*which, answer, *long),
            Act::KmsNamesAnotherKey(which, long) => {
                let other = self.clouds[*which].keys[1].arn.clone();
                self.answers(*which, &Answer::ClaimKey(other), *long);
            }
            Act::KmsQuota(which, quota, long) => {
                self.clouds[*which].kms.limit(Some(f64::from(*quota)));
                self.later(*long, Undo::KmsHeals(*which));
            }
            Act::KeyState(which, state, long) => {
                let (cloud, key) = behind(&self.clouds, SEALS[*which]);
                cloud.kms.set_state(key, state);
                self.later(*long, Undo::KeyEnabled(*which));
            }
            Act::Credentials(away, short) => {
                let (plane, namespace) = (&self.stage.plane, &self.stage.namespace);
                if *away {
                    plane.delete("Secret", namespace, "aws").await;
                } else {
                    let half = json!({"data": {"secret_key": null}});
                    let _ = plane.try_patch("Secret", namespace, "aws", &half).await;
                }
                tokio::time::sleep(*short).await;
                self.credentials().await;
            }
            Act::KillVault => self.vault.restart(),
            Act::FreezeVault(long) => {
                self.vault.signal(Signal::STOP);
                self.later(*long, Undo::VaultThaws);
            }
            Act::VaultWeather(weather, long) => {
                self.vault.link.set(*weather);
                self.later(*long, Undo::VaultFair);
            }
            Act::VaultCut => self.vault.link.cut(),
            Act::JumpClock(which, seconds, long) => {
                if !self.crew.set_clock(*which, *seconds) {
                    return false;
                }
                self.later(*long, Undo::ClockIsRight(*which));
            }
            Act::ReplaceVault(long) => {
                self.vault.is_replaced(true);
                self.later(*long, Undo::VaultIsBack);
            }
            _ => return self.perform_by_people(act).await,
        }
        true
    }

    fn answers(&mut self, which: usize, answer: &Answer, long: Duration) {
        for operation in ["Decrypt", "Encrypt", "DescribeKey"] {
            self.clouds[which].kms.always(operation, answer.clone());
        }
        self.later(long, Undo::KmsHeals(which));
    }

    /// What users and others do to a SealConfig.
    async fn perform_by_people(&mut self, act: &Act) -> bool {
        match act {
            Act::EditSecret(which) => self.edit_secret(*which).await,
            Act::DeleteSecret(which) => {
                let name = self.wanted[*which].name.clone();
                // Without a store the Secret is all that there is.
                if self.ledger().page(&name).store.is_none() {
                    return false;
                }
                let (plane, namespace) = (&self.stage.plane, &self.stage.namespace);
                plane.delete("Secret", namespace, &name).await;
                true
            }
            Act::LoseStatus(which) => {
                let names = [
                    "unseal",
                    "conditions",
                    "keys",
                    "seals",
                    "targets",
                    "summary",
                    "observedGeneration",
                ];
                let nothing: Value = names
                    .iter()
                    .map(|name| ((*name).to_owned(), Value::Null))
                    .collect();
                self.write_status(*which, &nothing).await;
                true
            }
            Act::ForgeStatus(which) => {
                let forged = json!({"conditions": [{"type": "Ready", "status": "False", "reason": FORGED,
                    "message": "somebody wrote this", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
                self.write_status(*which, &forged).await;
                true
            }
            Act::SealVault => self.vault.seal().await,
            Act::DeleteStore(which) => self.delete_store(*which).await,
            Act::DamageCopy(which) => self.damage_copy(*which).await,
            Act::Rotate(which) if !self.wanted[*which].makes => false,
            Act::Rotate(which) => {
                self.wanted[*which].trigger += 1;
                self.apply(*which).await;
                true
            }
            Act::Renew(which) | Act::Rewrap(which) if self.wanted[*which].brings == 0 => false,
            Act::Renew(which) => {
                self.renew(*which).await;
                true
            }
            Act::Rewrap(which) => {
                self.wanted[*which].rewrap(&self.clouds);
                self.apply(*which).await;
                true
            }
            Act::ToggleSeal(which) => {
                let step = self.step;
                let wanted = &mut self.wanted[*which];
                wanted.disabled = match wanted.disabled {
                    Some(_) => None,
                    None => Some(step % 2),
                };
                self.apply(*which).await;
                true
            }
            Act::ToggleThird(which) => {
                self.wanted[*which].third = !self.wanted[*which].third;
                self.apply(*which).await;
                true
            }
            _ => unreachable!("done elsewhere: {act:?}"),
        }
    }

    /// The value is right from before it is asked for.
    async fn renew(&mut self, which: usize) {
        self.wanted[which].renew(&self.clouds);
        let wanted = &self.wanted[which];
        let (name, value) = (wanted.name.clone(), wanted.value.clone());
        self.ledger().page(&name).asked.push(value);
        self.apply(which).await;
    }

    async fn apply(&self, which: usize) {
        let wanted = &self.wanted[which];
        let spec = wanted.spec(&self.clouds, &self.stage.namespace);
        self.stage.apply(&wanted.name, &spec).await;
    }

    async fn write_status(&self, which: usize, status: &Value) {
        let (plane, namespace) = (&self.stage.plane, &self.stage.namespace);
        // The one after the last is the Vault's.
        let name = self
            .wanted
            .get(which)
            .map_or(VAULT, |wanted| wanted.name.as_str());
        plane.patch_status("SealConfig", namespace, name, status).await;
    }

    async fn edit_secret(&self, which: usize) -> bool {
        let name = &self.wanted[which].name;
        let whole = {
            let mut ledger = self.ledger();
            let page = ledger.page(name);
            (page.store.is_some() || !self.wanted[which].makes)
                .then(|| page.secret.clone())
                .flatten()
        };
        let Some(entry) = whole.and_then(|data| data.keys().next().cloned()) else {
            return false;
        };
        let bytes = [FOREIGN, &random(8)].concat();
        let patch = json!({"data": {entry: BASE64.encode(&bytes)}});
        let (plane, namespace) = (&self.stage.plane, &self.stage.namespace);
        plane.try_patch("Secret", namespace, name, &patch).await.is_ok()
    }

    /// Only where all is well, so that what is lost can be had back from what was delivered.
    async fn delete_store(&mut self, which: usize) -> bool {
        let name = self.wanted[which].name.clone();
        if !self.wanted[which].makes || self.is_well(which).await.is_err() {
            return false;
        }
        let store = format!("{name}.sealconfig.wrapped");
        let (plane, namespace) = (self.stage.plane.clone(), self.stage.namespace.clone());
        plane.delete("Secret", &namespace, &store).await;
        let deleted = Instant::now();
        while plane.get("Secret", &namespace, &store).await.is_none() && deleted.elapsed() < STORE_COMES_BACK
        {
            self.tend_for_a_moment().await;
        }
        true
    }

    /// Only where another copy of the same version is whole.
    async fn damage_copy(&self, which: usize) -> bool {
        let name = &self.wanted[which].name;
        let Some(store) = self.ledger().page(name).store.clone() else {
            return false;
        };
        let data = data_of(&store);
        let current = &header(&data)["keys"]["made"]["section"]["current"];
        let item = |seal: &str| format!("key.made.v{current}.{seal}");
        let Some(mut bytes) = data
            .get(&item("two"))
            .cloned()
            .filter(|_| data.contains_key(&item("one")))
        else {
            return false;
        };
        *bytes.last_mut().unwrap() ^= 1;
        let patch = json!({"data": {item("two"): BASE64.encode(&bytes)}});
        let (plane, namespace) = (&self.stage.plane, &self.stage.namespace);
        let name = format!("{name}.sealconfig.wrapped");
        plane.try_patch("Secret", namespace, &name, &patch).await.is_ok()
    }

    /// Whether it is Ready for what is wanted now, and has delivered exactly that.
    pub(super) async fn is_well(&self, which: usize) -> Result<(), String> {
        let wanted = &self.wanted[which];
        let (plane, namespace) = (&self.stage.plane, &self.stage.namespace);
        let config = plane
            .get("SealConfig", namespace, &wanted.name)
            .await
            .unwrap_or_default();
        if condition(&config, "Ready")["status"] != "True" || !speaks_of_now(&config) {
            return Err(format!("{}: {:#}", wanted.name, config["status"]));
        }
        let data = self.stage.secret(&wanted.name).await.unwrap_or_default();
        if data.values().any(|bytes| bytes.starts_with(FOREIGN)) {
            return Err(format!("{}: another's value stands in its Secret", wanted.name));
        }
        if wanted.brings > 0 && data.get("brought") != Some(&wanted.value) {
            return Err(format!("{}: what was brought last is not delivered", wanted.name));
        }
        if wanted.makes && data.get("current").is_none_or(|bytes| bytes.len() != 32) {
            return Err(format!("{}: no made key is delivered", wanted.name));
        }
        Ok(())
    }

    /// Whether the Vault is unsealed, and the operator says so.
    async fn vault_is_well(&self) -> Result<(), String> {
        let (plane, namespace) = (&self.stage.plane, &self.stage.namespace);
        let config = plane
            .get("SealConfig", namespace, VAULT)
            .await
            .unwrap_or_default();
        let told = ["Ready", "Unsealed"]
            .iter()
            .all(|kind| condition(&config, kind)["status"] == "True");
        if !told || !speaks_of_now(&config) {
            return Err(format!("{VAULT}: {:#}", config["status"]));
        }
        let unsealed = self.vault.is_unsealed().await;
        unsealed
            .then_some(())
            .ok_or_else(|| format!("{VAULT}: it is sealed, and the operator does not say so"))
    }

    /// Whether a brought key waits for its user: the KMS said that its copy is not what it should be, which is not asked
    /// again soon, and the documentation of the reason says to wrap it again.
    async fn needs_its_user(&self, which: usize) -> bool {
        let wanted = &self.wanted[which];
        let plane = &self.stage.plane;
        let config = plane.get("SealConfig", &self.stage.namespace, &wanted.name).await;
        let keys = condition(&config.unwrap_or_default(), "KeysUnwrapped");
        let reasons = [
            "KeyNotAllowed",
            "CheckValueDiffers",
            "CiphertextInvalid",
            "ContextMismatch",
        ];
        wanted.brings > 0
            && reasons.iter().any(|reason| keys["reason"] == *reason)
            && keys["message"]
                .as_str()
                .is_some_and(|message| message.contains("\"brought\""))
    }

    /// Waits until all are well.
    async fn settle(&mut self, when: &str) {
        // The longest wait between two tries, and time for the try.
        let limit = Duration::from_mins(8);
        let asked = Instant::now();
        // A run that is ended by somebody's patience must say as well what it waited for.
        let mut told = asked;
        // The Vault is the one after the last, and the first that is looked at.
        let mut left: Vec<usize> = (0..=self.wanted.len()).collect();
        let mut helped = BTreeSet::new();
        while let Some(which) = left.last().copied() {
            self.tend_for_a_moment().await;
            self.hold();
            let of_a_key = which < self.wanted.len();
            let well = if of_a_key {
                self.is_well(which).await
            } else {
                self.vault_is_well().await
            };
            let Err(why) = well else {
                left.pop();
                continue;
            };
            if told.elapsed() > Duration::from_secs(45) {
                told = Instant::now();
                println!("chaos: {}: not well yet: {why}", self.place());
            }
            if of_a_key && self.needs_its_user(which).await && helped.insert(which) {
                println!(
                    "chaos: {}: {}: its user wraps the key again",
                    self.place(),
                    self.wanted[which].name
                );
                self.wanted[which].rewrap(&self.clouds);
                self.apply(which).await;
            }
            assert!(
                asked.elapsed() < limit,
                "chaos: VIOLATION at {}: after {when} not all became well: {why}",
                self.place()
            );
        }
        println!(
            "chaos: {}: all are well {:.1} s after {when}",
            self.place(),
            asked.elapsed().as_secs_f64()
        );
    }
}
