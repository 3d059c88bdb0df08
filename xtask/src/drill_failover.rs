//! `cargo xtask drill failover`: leaders killed under load, more often than in a test.

use crate::campaign;
use crate::failure::Outcome;
use crate::session::Session;

/// The test that is the drill.
const TEST: &str = "failover::leaders_that_are_killed_under_load_leave_nothing_undone_and_nothing_done_twice";
/// As often as the promise is made for.
const KILLS: u32 = 20;

/// `cargo xtask drill failover [--kills N]`
pub fn run(session: &Session, arguments: &[String]) -> Outcome<i32> {
    let kills = kills(arguments)?;
    campaign::run(session, TEST, |test| {
        test.env("AUTOUNSEAL_DRILL_KILLS", kills.to_string());
    })
}

fn kills(arguments: &[String]) -> Outcome<u32> {
    match arguments {
        [] => Ok(KILLS),
        [flag, number] if flag == "--kills" => number
            .parse()
            .ok()
            .filter(|kills| *kills > 0)
            .ok_or_else(|| format!("--kills takes a number above 0, not `{number}`.").into()),
        _ => Err("the drill takes one flag: cargo xtask drill failover --kills 20".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_kills_is_read_or_refused() {
        let of = |text: &str| kills(&text.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).ok();
        assert_eq!((of(""), of("--kills 3")), (Some(20), Some(3)));
        for wrong in ["--kills", "--kills 0", "--kills x", "3", "--times 3"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_drill_is_a_test_that_is_there() {
        assert!(campaign::is_there(TEST));
    }
}
