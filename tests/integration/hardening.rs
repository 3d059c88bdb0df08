//! What the process does before it reads anything: no core dump, and no page in swap where that is allowed.

use std::process::Command;

use crate::support::{operator::Running, scene::Scene, stage::random};

fn read(running: &Running, file: &str) -> String {
    std::fs::read_to_string(format!("/proc/{}/{file}", running.pid())).unwrap()
}

/// The words behind the name.
fn value(text: &str, name: &str) -> Vec<String> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.split_whitespace().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_core_is_dumped_and_pages_are_locked_where_that_cannot_fail_later() {
    let scene = Scene::new("hardening").await;
    let script = |kilobytes: &str| format!("ulimit -l {kilobytes} && exec \"$@\"");
    let with_limit = |kilobytes: &str| {
        let words = ["sh", "-c", &script(kilobytes), "sh"].map(str::to_owned);
        scene.operator().launched_by(words.to_vec()).start()
    };
    // As in most containers.
    let running = with_limit("64");
    scene.deliver("limited", &random(32)).await;
    assert_eq!(
        value(&read(&running, "limits"), "Max core file size")[..2],
        ["0", "0"]
    );
    assert_eq!(value(&read(&running, "status"), "VmLck:"), ["0", "kB"]);
    running.stop();
    // Not everybody may lift a limit.
    let lifted = Command::new("sh")
        .args(["-c", &script("unlimited"), "sh", "true"])
        .status();
    if lifted.unwrap().success() {
        let running = with_limit("unlimited");
        scene.deliver("unlimited", &random(32)).await;
        let locked: u64 = value(&read(&running, "status"), "VmLck:")[0].parse().unwrap();
        assert!(locked > 0, "nothing is locked");
        running.stop();
    }
}
