//! What must hold at the end.

use std::{collections::BTreeSet, time::Duration};

use aho_corasick::AhoCorasick;

use super::{
    campaign::Campaign,
    ledger::MADE,
    vault::{VAULT, answered},
    world::{ACCESS_SECRET, SEALS, behind},
};
use crate::support::{
    needle::Needle,
    oci_caller::{Caller, Done},
    plane::{eventually, within},
    stage::unique,
};

impl Campaign {
    /// Holds everything that is to be held, and prints what there was.
    pub async fn judge(&mut self) {
        let marker = format!("marker-{}", unique());
        self.stage.secret_of(&marker, &[]).await;
        eventually("every write has been seen", async || {
            let seen = self.ledger().has_seen(&marker);
            seen.then_some(()).ok_or_else(|| "not yet".to_owned())
        })
        .await;
        self.hold();
        let opened = self.everything_opens().await + self.the_vault_opens().await;
        self.nothing_was_said();
        self.print(opened);
    }

    /// What the command line opens of a store, for somebody who has nothing but the files and the KMS of that seal.
    pub(super) async fn unwrap(&self, name: &str, seal: &str, what: &[&str]) -> Done {
        let (cloud, _) = behind(&self.clouds, seal);
        let caller = Caller::new()
            .env("AWS_ENDPOINT_URL_KMS", cloud.kms.url())
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", "AKIACHAOSCHAOSCHAOS0")
            .env("AWS_SECRET_ACCESS_KEY", ACCESS_SECRET)
            .env("AWS_EC2_METADATA_DISABLED", "true");
        let config = self.stage.config(name).await;
        let store = self
            .stage
            .whole_secret(&format!("{name}.sealconfig.wrapped"))
            .await;
        let config = caller.file("config.json", config.to_string());
        let store = caller.file("store.json", store.to_string());
        let files = ["unwrap", "-f", &config, "--store", &store, "--seal", seal];
        caller.run(&[&files, what].concat(), b"")
    }

    /// Every version that was ever delivered, and whose copies nobody deleted, opens under every seal that wraps.
    async fn everything_opens(&self) -> usize {
        let mut opened = 0;
        for wanted in self.wanted.iter().filter(|wanted| wanted.makes) {
            let owed: Vec<(u64, Vec<u8>)> = {
                let mut ledger = self.ledger();
                let page = ledger.page(&wanted.name);
                page.owed
                    .iter()
                    .map(|version| (*version, page.made[version].clone()))
                    .collect()
            };
            assert!(!owed.is_empty(), "{}: no version was delivered", wanted.name);
            for (version, bytes) in owed {
                let number = version.to_string();
                for seal in wanted.enabled() {
                    let what = ["--key", MADE, "--key-version", &number];
                    self.opens(&wanted.name, seal, &what, &bytes).await;
                    opened += 1;
                }
            }
        }
        opened
    }

    /// Every share that the Vault ever answered opens under both seals, and by the shares the Vault itself, which has what was
    /// put into it.
    async fn the_vault_opens(&mut self) -> usize {
        self.vault.keeps().await;
        let answers = self.vault.answers.clone();
        for (at, answer) in answers.iter().enumerate() {
            let what = answered(at);
            let what: Vec<&str> = what.iter().map(String::as_str).collect();
            for seal in &SEALS[..2] {
                self.opens(VAULT, seal, &what, answer.as_bytes()).await;
            }
        }
        self.vault.opens_by(&answers).await;
        self.vault.keeps().await;
        2 * answers.len()
    }

    /// A seal that was enabled again gets copies of older versions as soon as it can, not before all is Ready.
    async fn opens(&self, name: &str, seal: &str, what: &[&str], bytes: &[u8]) {
        let place = format!(
            "chaos: VIOLATION at {}: {what:?} of {name} opens under {seal}",
            self.place()
        );
        within(Duration::from_mins(8), &place, async || {
            let done = self.unwrap(name, seal, what).await;
            (done.code == 0 && done.out == bytes)
                .then_some(())
                .ok_or(done.err)
        })
        .await;
    }

    /// Nothing secret stands in the replicas' output and metrics, in any status there was, in any event.
    fn nothing_was_said(&self) {
        let ledger = self.ledger();
        let mut needles = ledger.needles();
        needles.extend(self.vault.needles());
        needles.push(Needle::new("the secret access key", ACCESS_SECRET.as_bytes()));
        let mut whose = Vec::new();
        let mut forms = Vec::new();
        for needle in &needles {
            for form in needle.forms() {
                whose.push(needle.what.as_str());
                forms.push(form);
            }
        }
        let search = AhoCorasick::new(forms).unwrap();
        let written = self.crew.said();
        assert!(
            written.len() > 10_000 && ledger.said.len() > 10_000,
            "there is little to search"
        );
        let found: BTreeSet<&str> = [&written, &ledger.said]
            .into_iter()
            .flat_map(|text| search.find_iter(text))
            .map(|hit| whose[hit.pattern().as_usize()])
            .collect();
        assert!(
            found.is_empty(),
            "chaos: VIOLATION at {}: somebody said {found:?}",
            self.place()
        );
        // What the panic hook says.
        let faults: Vec<&str> = written
            .lines()
            .filter(|line| line.contains("the program has a fault at this place"))
            .collect();
        assert!(
            faults.is_empty(),
            "chaos: VIOLATION at {}: {faults:#?}",
            self.place()
        );
    }

    fn print(&self, opened: usize) {
        let ledger = self.ledger();
        let [secrets, stores, statuses] = ledger.seen;
        let versions: usize = ledger.pages.values().map(|page| page.made.len()).sum();
        let values: usize = ledger.pages.values().map(|page| page.asked.len()).sum();
        let acts: usize = self.acts.values().sum();
        let calls: usize = self.clouds.iter().map(|cloud| cloud.kms.calls().len()).sum();
        println!("chaos: {}: held", self.place());
        println!("chaos: acts: {acts}: {:?}", self.acts);
        println!("chaos: reasons written: {:?}", ledger.reasons);
        println!(
            "chaos: states judged: {secrets} of Secrets, {stores} of stores, {statuses} of SealConfigs; {versions} versions \
             made, {values} values brought, {opened} copies opened at the end, {calls} calls of the KMSes, {} replicas \
             started again, {} starts of the Vault and {} connections to another in its place",
            self.crew.restarts,
            self.vault.starts,
            self.vault.met(),
        );
        assert!(
            secrets > 0 && stores > 0 && statuses > 0 && versions > 0,
            "nothing happened"
        );
    }
}
