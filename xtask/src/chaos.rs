//! `cargo xtask chaos`: the fault campaign of the tests, for as long and by the seed that is asked for.

use crate::campaign;
use crate::failure::Outcome;
use crate::session::Session;

/// The test that is the campaign.
const TEST: &str = "chaos::whatever_breaks_right_keys_are_delivered_none_is_lost_and_all_ends_well";

/// What was asked for.
#[derive(Debug, PartialEq)]
struct Request {
    minutes: u64,
    seed: Option<u64>,
}

/// `cargo xtask chaos [--minutes M] [--seed S]`
pub fn run(session: &Session, arguments: &[String]) -> Outcome<i32> {
    let request = parse(arguments)?;
    let seed = request.seed.unwrap_or_else(|| u64::from(std::process::id()));
    campaign::run(session, TEST, |test| {
        test.env("AUTOUNSEAL_CHAOS_SECONDS", (request.minutes * 60).to_string())
            .env("AUTOUNSEAL_CHAOS_SEED", seed.to_string());
    })
}

/// The campaign of the test command, by the seed and for the time that the test itself names.
pub fn short(session: &Session) -> Outcome<bool> {
    Ok(campaign::run(session, TEST, |_| ())? == 0)
}

fn parse(arguments: &[String]) -> Outcome<Request> {
    let mut request = Request {
        minutes: 5,
        seed: None,
    };
    let mut rest = arguments.iter();
    while let Some(flag) = rest.next() {
        let number = rest.next().and_then(|text| text.parse::<u64>().ok());
        match (flag.as_str(), number) {
            ("--minutes", Some(minutes @ 1..=1440)) => request.minutes = minutes,
            ("--seed", Some(seed)) => request.seed = Some(seed),
            _ => {
                return Err("the campaign takes two numbers: cargo xtask chaos --minutes 5 --seed 1".into());
            }
        }
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_and_seed_are_read_or_refused() {
        let of = |text: &str| parse(&text.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).ok();
        let request = |minutes, seed| Some(Request { minutes, seed });
        assert_eq!(of(""), request(5, None));
        assert_eq!(of("--seed 7 --minutes 30"), request(30, Some(7)));
        for wrong in ["--minutes", "--minutes 0", "--seed x", "3", "--hours 3"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_campaign_is_a_test_that_is_there() {
        assert!(campaign::is_there(TEST));
    }
}
