//! `cargo xtask scan`: checkov's opinion of the rendered chart, held against the answers in docs/scan-findings.md.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use crate::failure::{Doing, Outcome};
use crate::session::Session;
use crate::{repository, tools};

const CHART: &str = "charts/auto-unseal-operator";
const ANSWERS: &str = "docs/scan-findings.md";

/// `cargo xtask scan`
pub fn run(session: &Session, arguments: &[String]) -> Outcome<i32> {
    if let Some(unknown) = arguments.first() {
        return Err(format!("`scan` takes no argument, but was given `{unknown}`.").into());
    }
    let (helm, checkov) = (tools::helm(session)?, tools::checkov(session)?);
    let folder = session.temporary_folder("scan")?;
    let root = repository::root();
    let mut found = BTreeSet::new();
    for values in ["tenants", "cluster-wide", "everything"] {
        let rendered = Command::new(&helm)
            .args(["template", "r", "--namespace", "ops", "--values"])
            .arg(root.join(CHART).join(format!("ci/{values}-values.yaml")))
            .arg(root.join(CHART))
            .output()
            .doing("run helm")?;
        if !rendered.status.success() {
            return Err(format!("helm: {}", String::from_utf8_lossy(&rendered.stderr)).into());
        }
        let path = folder.join(format!("{values}.yaml"));
        std::fs::write(&path, rendered.stdout).doing(format!("write {}", path.display()))?;
        let scanned = Command::new(checkov.program("checkov"))
            .args([
                "--framework",
                "kubernetes",
                "--skip-download",
                "--quiet",
                "--output",
                "json",
                "--file",
            ])
            .arg(&path)
            .output()
            .doing("run checkov")?;
        let report = serde_json::from_slice(&scanned.stdout).doing("read what checkov prints")?;
        let of_file = findings(&report).ok_or("checkov printed no list of checks that failed")?;
        println!(
            "{values}: {}",
            of_file.iter().cloned().collect::<Vec<_>>().join(" ")
        );
        found.extend(of_file);
    }
    let page = repository::read(&root.join(Path::new(ANSWERS)))?;
    let answered = answers(&String::from_utf8_lossy(&page));
    for id in found.difference(&answered) {
        eprintln!("{id} is not answered in {ANSWERS}");
    }
    for id in answered.difference(&found) {
        eprintln!("{id} is answered in {ANSWERS}, but nothing is found any more");
    }
    Ok(i32::from(found != answered))
}

/// The ids of failed checks.
fn findings(report: &serde_json::Value) -> Option<BTreeSet<String>> {
    let failed = report.pointer("/results/failed_checks")?.as_array()?;
    failed
        .iter()
        .map(|check| Some(check["check_id"].as_str()?.to_owned()))
        .collect()
}

/// The ids of checkov that the page's table answers.
fn answers(page: &str) -> BTreeSet<String> {
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    rows.filter_map(|row| row.split('|').nth(1))
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .filter(|word| word.starts_with("CKV"))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_and_answers_are_read() {
        let report = serde_json::json!({"results": {"failed_checks": [{"check_id": "CKV_K8S_1"}]}});
        assert_eq!(findings(&report), Some(["CKV_K8S_1".to_owned()].into()));
        assert_eq!(findings(&serde_json::json!({"passed": 0})), None);
        let page = "| finding |\n| `a-b`, `CKV_K8S_1`: x | y | `CKV_K8S_2` |\ntext `CKV_K8S_3`\n";
        assert_eq!(answers(page), ["CKV_K8S_1".to_owned()].into());
    }
}
