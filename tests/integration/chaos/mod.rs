//! The fault campaign: two replicas, two KMSes, a Vault, an etcd and an apiserver, a bad network between them all, users who
//! change their minds and others who meddle. Whatever happens, what is delivered is right, nothing is lost, all ends well, and
//! nothing secret is said. `cargo xtask chaos --minutes M --seed S` runs it for long.

mod acts;
mod campaign;
mod cluster;
mod crew;
mod dice;
mod etcd;
mod ledger;
mod link;
mod vault;
mod verdict;
mod world;

use std::time::Duration;

use campaign::Campaign;

/// The seed of the short one.
const SEED: u64 = 11;

/// How long faults come in the short one.
const SECONDS: u64 = 40;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "runs by itself: cargo xtask test chaos, and for as long as asked: cargo xtask chaos"]
async fn whatever_breaks_right_keys_are_delivered_none_is_lost_and_all_ends_well() {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .map(|text| text.parse::<u64>().expect("a number"))
    };
    let seed = number("AUTOUNSEAL_CHAOS_SEED").unwrap_or(SEED);
    let seconds = number("AUTOUNSEAL_CHAOS_SECONDS").unwrap_or(SECONDS);
    let mut campaign = Campaign::start(seed).await;
    campaign.suffer(Duration::from_secs(seconds)).await;
    campaign.recover().await;
    campaign.judge().await;
}
