//! What must hold at the end.

use std::collections::BTreeSet;

use aho_corasick::AhoCorasick;

use super::{
    campaign::Campaign,
    ledger::MADE,
    world::{ACCESS_SECRET, behind},
};
use crate::support::{
    needle::Needle,
    oci_caller::Caller,
    plane::{eventually, within},
    stage::unique,
};

impl Campaign {
    /// Holds everything that is to be held, and prints what there was.
    pub async fn judge(&self) {
        let marker = format!("marker-{}", unique());
        self.stage.secret_of(&marker, &[]).await;
        eventually("every write has been seen", async || {
            let seen = self.ledger().has_seen(&marker);
            seen.then_some(()).ok_or_else(|| "not yet".to_owned())
        })
        .await;
        self.hold();
        let opened = self.everything_opens().await;
        self.nothing_was_said();
        self.print(opened);
    }

    /// Every version that was ever delivered, and whose copies nobody deleted, opens under every seal that wraps.
    async fn everything_opens(&self) -> usize {
        let caller = Caller::new();
        let mut opened = 0;
        for wanted in self.wanted.iter().filter(|wanted| wanted.makes) {
            let config = self.stage.config(&wanted.name).await;
            let file = caller.file(&format!("{}.json", wanted.name), config.to_string());
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
                for seal in wanted.enabled() {
                    let (cloud, _) = behind(&self.clouds, seal);
                    let version = version.to_string();
                    // A seal that was enabled again gets copies of older versions as soon as it can, not before all is Ready.
                    let what = format!(
                        "chaos: VIOLATION at {}: version {version} of {} opens under {seal}",
                        self.place(),
                        wanted.name
                    );
                    within(std::time::Duration::from_mins(8), &what, async || {
                        let secret = format!("{}.sealconfig.wrapped", wanted.name);
                        let store = self.stage.whole_secret(&secret).await;
                        let store = caller.file("store.json", store.to_string());
                        let arguments = [
                            "unwrap",
                            "-f",
                            &file,
                            "--store",
                            &store,
                            "--key",
                            MADE,
                            "--key-version",
                            &version,
                            "--seal",
                            seal,
                        ];
                        let done = Caller::new()
                            .env("AWS_ENDPOINT_URL_KMS", cloud.kms.url())
                            .env("AWS_REGION", "us-east-1")
                            .env("AWS_ACCESS_KEY_ID", "AKIACHAOSCHAOSCHAOS0")
                            .env("AWS_SECRET_ACCESS_KEY", ACCESS_SECRET)
                            .env("AWS_EC2_METADATA_DISABLED", "true")
                            .run(&arguments, b"");
                        (done.code == 0 && done.out == bytes)
                            .then_some(())
                            .ok_or(done.err)
                    })
                    .await;
                    opened += 1;
                }
            }
        }
        opened
    }

    /// Nothing secret stands in the replicas' output and metrics, in any status there was, in any event.
    fn nothing_was_said(&self) {
        let ledger = self.ledger();
        let mut needles = ledger.needles();
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
             started again",
            self.crew.restarts
        );
        assert!(
            secrets > 0 && stores > 0 && statuses > 0 && versions > 0,
            "nothing happened"
        );
    }
}
