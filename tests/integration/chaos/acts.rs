//! What happens, and when: a function of the seed.

use std::time::Duration;

use super::{dice::Dice, link::Weather};
use crate::support::kms::Act as Answer;

/// One thing that happens. Numbers say to which replica, KMS or SealConfig; durations, for how long.
#[derive(Clone, Debug)]
pub enum Act {
    /// SIGKILL.
    KillReplica(usize),
    /// SIGTERM.
    EndReplica(usize),
    /// SIGSTOP, and SIGCONT: for the replica every clock jumps.
    FreezeReplica(usize, Duration),
    /// SIGKILL.
    KillApiserver,
    /// SIGSTOP, and SIGCONT.
    FreezeApiserver(Duration),
    /// SIGKILL.
    KillEtcd,
    /// SIGSTOP, and SIGCONT.
    FreezeEtcd(Duration),
    /// The network between a replica and the apiserver.
    ApiWeather(usize, Weather, Duration),
    /// Its connections are cut.
    ApiCut(usize),
    /// The network before a KMS.
    KmsWeather(usize, Weather, Duration),
    /// Its connections are cut.
    KmsCut(usize),
    /// The KMS answers everything so.
    KmsAnswers(usize, Answer, Duration),
    /// Another key's name in every answer that opens something.
    KmsNamesAnotherKey(usize, Duration),
    /// A quota of so many requests a second.
    KmsQuota(usize, u32, Duration),
    /// The key of a seal is in that state.
    KeyState(usize, &'static str, Duration),
    /// The Secret with the credentials is away, or without its secret half.
    Credentials(bool, Duration),
    /// Somebody writes another value into the delivered Secret.
    EditSecret(usize),
    /// Somebody deletes it.
    DeleteSecret(usize),
    /// Somebody empties the status.
    LoseStatus(usize),
    /// Somebody writes another verdict into it.
    ForgeStatus(usize),
    /// Somebody deletes the wrapped store.
    DeleteStore(usize),
    /// Somebody damages one copy in it.
    DamageCopy(usize),
    /// A user asks for a new version.
    Rotate(usize),
    /// A user brings another value.
    Renew(usize),
    /// A user brings the same value, wrapped anew.
    Rewrap(usize),
    /// A user disables one of two seals, or enables it again.
    ToggleSeal(usize),
    /// A user adds a third seal, or removes it again.
    ToggleThird(usize),
    /// SIGKILL.
    KillVault,
    /// SIGSTOP, and SIGCONT.
    FreezeVault(Duration),
    /// Somebody seals it by its API.
    SealVault,
    /// The network before the Vault.
    VaultWeather(Weather, Duration),
    /// Its connections are cut.
    VaultCut,
    /// Another server stands at its address.
    ReplaceVault(Duration),
    /// A replica's wall clock jumps by so many seconds, and back.
    JumpClock(usize, i64, Duration),
}

impl Act {
    /// Its word, for the count at the end.
    pub fn word(&self) -> String {
        let text = format!("{self:?}");
        text.split('(').next().unwrap_or_default().to_owned()
    }
}

/// One step.
#[derive(Clone, Debug)]
pub struct Step {
    /// After the start.
    pub at: Duration,
    /// What happens.
    pub act: Act,
}

/// Kinds of acts; edits by users are more frequent.
const KINDS: [u8; 41] = [
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 22, 22, 23, 23, 24, 25,
    26, 11, 27, 27, 28, 29, 29, 30, 31, 32, 33, 33,
];

/// Seconds by which a clock jumps: more than signatures allow, than a wait lasts, than certificates of the Vault and of the
/// apiserver are valid.
const JUMPS: [i64; 7] = [-259_200, -2_400, -400, 400, 2_400, 259_200, 2_592_000];

/// What happens in so long with so many SealConfigs. Of each kind something comes once in a round.
pub fn schedule(seed: u64, length: Duration, configs: usize) -> Vec<Step> {
    let mut dice = Dice::new(seed);
    let mut steps = Vec::new();
    let mut deck = Vec::new();
    let mut at = Duration::ZERO;
    loop {
        at += Duration::from_millis(dice.between(100, 1500));
        if at >= length {
            return steps;
        }
        if deck.is_empty() {
            deck = KINDS.to_vec();
        }
        let kind = deck.swap_remove(dice.below(deck.len()));
        steps.push(Step {
            at,
            act: act(kind, &mut dice, configs),
        });
    }
}

fn act(kind: u8, dice: &mut Dice, configs: usize) -> Act {
    let (two, config) = (dice.below(2), dice.below(configs));
    // The Vault's SealConfig is the one after the last.
    let status = dice.below(configs + 1);
    let short = Duration::from_millis(dice.between(500, 4000));
    let long = Duration::from_millis(dice.between(1000, 20_000));
    let bad = [Weather::Late(400), Weather::Stalled, Weather::Refused];
    let worse = [
        Weather::Late(400),
        Weather::Stalled,
        Weather::Refused,
        Weather::Corrupt,
        Weather::Corrupt,
    ];
    let states = ["Disabled", "Silent", "Unavailable", "PendingDeletion"];
    match kind {
        0 => Act::KillReplica(two),
        1 => Act::EndReplica(two),
        2 => Act::FreezeReplica(two, long),
        3 => Act::KillApiserver,
        4 => Act::FreezeApiserver(short),
        5 => Act::KillEtcd,
        6 => Act::FreezeEtcd(short),
        7 => Act::ApiWeather(two, dice.one_of(&bad), long),
        8 => Act::ApiCut(two),
        9 => Act::KmsWeather(two, dice.one_of(&worse), long),
        10 => Act::KmsCut(two),
        11 => Act::KmsAnswers(two, dice.one_of(&answers()), long),
        12 => Act::KmsNamesAnotherKey(two, long),
        13 => Act::KmsQuota(two, if dice.below(2) == 0 { 1 } else { 4 }, long),
        14 => Act::KeyState(two, dice.one_of(&states), long),
        15 => Act::Credentials(dice.below(2) == 0, short),
        16 => Act::EditSecret(config),
        17 => Act::DeleteSecret(config),
        18 => Act::LoseStatus(status),
        19 => Act::ForgeStatus(status),
        20 => Act::DeleteStore(config),
        21 => Act::DamageCopy(config),
        22 => Act::Rotate(config),
        23 => Act::Renew(config),
        24 => Act::Rewrap(config),
        25 => Act::ToggleSeal(config),
        26 => Act::ToggleThird(config),
        27 => Act::KillVault,
        28 => Act::FreezeVault(long),
        29 => Act::SealVault,
        30 => Act::VaultWeather(dice.one_of(&worse), long),
        31 => Act::VaultCut,
        32 => Act::ReplaceVault(long),
        _ => Act::JumpClock(two, dice.one_of(&JUMPS), long),
    }
}

/// What a KMS may answer instead of the right thing.
fn answers() -> Vec<Answer> {
    vec![
        Answer::error(400, "ExpiredTokenException"),
        Answer::error(400, "AccessDeniedException"),
        Answer::error(400, "UnrecognizedClientException"),
        Answer::Throttle(Some(1)),
        Answer::Throttle(None),
        Answer::ServerFault,
        Answer::Hang,
        Answer::Late(Duration::from_secs(2)),
        Answer::CloseMidAnswer,
        Answer::Garbage,
        Answer::NotHttp,
        Answer::Flood,
        Answer::OtherBytes(b"these are the bytes of no key ..".to_vec()),
        Answer::EchoRequest,
        Answer::EchoPlaintext,
    ]
}

#[test]
fn a_seed_repeats_its_faults_and_a_round_has_them_all() {
    let words = |seed| {
        let steps = schedule(seed, Duration::from_mins(1), 5);
        steps.iter().map(|step| format!("{step:?}")).collect::<Vec<_>>()
    };
    assert_eq!(words(1), words(1));
    assert_ne!(words(1), words(2));
    let kinds: std::collections::BTreeSet<String> = schedule(1, Duration::from_mins(1), 5)
        .iter()
        .map(|step| step.act.word())
        .collect();
    assert_eq!(kinds.len(), 34, "{kinds:?}");
}
