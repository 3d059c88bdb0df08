//! `cargo xtask picture`: what the chart's dashboard shows of a real run, drawn without a Grafana.
//!
//! A test plays the run, a Prometheus scrapes its replicas, the dashboard's own queries are asked of it, and [`draw`]
//! makes the picture of the answers. A test below holds the picture against the dashboard.

mod dashboard;
mod draw;
mod prometheus;
mod recorded;
mod scale;
mod svg;

use std::path::PathBuf;

use serde_json::Value;

use crate::failure::{Doing, Outcome};
use crate::session::Session;
use crate::{campaign, repository, tools};
use dashboard::Dashboard;
use prometheus::Prometheus;
use recorded::Recorded;

/// The test that plays the run.
const TEST: &str = "pictured::whatever_the_dashboard_asks_for_is_told_when_it_happens";

/// The picture.
const PICTURE: &str = "docs/images/dashboard.svg";

/// `cargo xtask picture [--again]`
pub fn run(session: &Session, arguments: &[String]) -> Outcome<i32> {
    let again = match arguments {
        [] => false,
        [flag] if flag == "--again" => true,
        _ => return Err("the picture takes one flag: cargo xtask picture --again".into()),
    };
    let dashboard = Dashboard::of_the_chart()?;
    let kept = repository::target_folder(session)?.join("picture.json");
    if !again {
        let status = record(session, &dashboard, &kept)?;
        if status != 0 {
            return Ok(status);
        }
    }
    let answers = serde_json::from_slice(&repository::read(&kept)?).doing("read what was recorded")?;
    let recorded = Recorded::parse(&dashboard, &answers)?;
    let path = repository::root().join(PICTURE);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).doing(format!("make the folder {}", folder.display()))?;
    }
    std::fs::write(&path, draw::draw(&dashboard, &recorded)).doing(format!("write {}", path.display()))?;
    println!("wrote {PICTURE}");
    for (panel, answers) in dashboard.panels.iter().zip(&recorded.answers) {
        if answers.iter().flatten().all(|series| series.last().is_none()) {
            println!("no data: {}", panel.title);
        }
    }
    Ok(0)
}

/// Has the run played, and keeps what the queries were answered; the exit status of the test.
fn record(session: &Session, dashboard: &Dashboard, kept: &PathBuf) -> Outcome<i32> {
    let program = tools::prometheus(session)?;
    let folder = session.temporary_folder("picture")?;
    let prometheus = Prometheus::start(session, &program, &folder)?;
    let status = campaign::run(session, TEST, |test| {
        test.env("AUTOUNSEAL_PICTURE", &folder);
    })?;
    if status != 0 {
        return Ok(status);
    }
    let run: Value = serde_json::from_slice(&repository::read(&folder.join("run.json"))?)
        .doing("read when the run was")?;
    let answers = recorded::ask_all(dashboard, recorded::window(&run)?, |path, given| {
        prometheus.ask(path, given)
    })?;
    std::fs::write(kept, answers.to_string()).doing(format!("write {}", kept.display()))?;
    prometheus.stop(session);
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_picture_in_the_docs_is_of_the_dashboard_as_it_is() {
        let dashboard = Dashboard::of_the_chart().unwrap();
        let picture = repository::read(&repository::root().join(PICTURE)).unwrap();
        let picture = String::from_utf8(picture).unwrap();
        let mark = format!("<metadata>{}{}</metadata>", draw::MARK, dashboard.fingerprint());
        assert!(picture.contains(&mark), "{PICTURE} is stale: cargo xtask picture");
        for panel in &dashboard.panels {
            let title = format!(">{}</text>", svg::escape(&panel.title));
            assert!(
                picture.contains(&title),
                "{title} is not in {PICTURE}: cargo xtask picture"
            );
        }
    }

    #[test]
    fn the_run_is_a_test_that_is_there() {
        assert!(campaign::is_there(TEST));
    }
}
