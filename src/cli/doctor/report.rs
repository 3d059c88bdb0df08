//! What the doctor found, as text and as JSON. Pure.

use std::{fmt::Write as _, time::Duration};

use serde_json::{Value, json};

use crate::seal::Fault;

/// One step on the way to a key.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Step {
    pub(super) name: &'static str,
    pub(super) outcome: Outcome,
    pub(super) took: Duration,
}

/// How a step went.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Outcome {
    /// Well, and what was seen.
    Well(String),
    /// Not well, but no fault.
    Note(String),
    /// It could not be tried here.
    Skipped(String),
    /// The finding.
    Failed(Fault),
}

/// The walk to one seal's key.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Walk {
    /// Name of the seal.
    pub(super) seal: String,
    /// `awskms`, `ocikms`.
    pub(super) provider: &'static str,
    /// The key as it is configured.
    pub(super) key: String,
    pub(super) steps: Vec<Step>,
}

impl Walk {
    fn failed(&self) -> Option<&Fault> {
        self.steps.iter().find_map(|step| match &step.outcome {
            Outcome::Failed(fault) => Some(fault),
            _ => None,
        })
    }
}

/// The whole report.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Report {
    /// `namespace/name`, or the file.
    pub(super) of: String,
    /// What kept the walk from beginning.
    pub(super) fault: Option<Fault>,
    pub(super) walks: Vec<Walk>,
    /// Ready, reason and message, as the operator last wrote them.
    pub(super) operator: Option<(String, String, String)>,
}

impl Report {
    /// Whether nothing was found.
    pub(super) fn is_well(&self) -> bool {
        self.fault.is_none() && self.walks.iter().all(|walk| walk.failed().is_none())
    }

    pub(super) fn json(&self) -> Value {
        let fault = |fault: &Fault| json!({"reason": fault.reason.as_str(), "message": fault.message});
        let steps = |walk: &Walk| -> Vec<Value> {
            walk.steps
                .iter()
                .map(|step| {
                    let (result, reason, message) = match &step.outcome {
                        Outcome::Well(seen) => ("ok", None, seen.clone()),
                        Outcome::Note(seen) => ("note", None, seen.clone()),
                        Outcome::Skipped(why) => ("skipped", None, why.clone()),
                        Outcome::Failed(fault) => {
                            ("failed", Some(fault.reason.as_str()), fault.message.clone())
                        }
                    };
                    json!({
                        "step": step.name,
                        "result": result,
                        "reason": reason,
                        "message": message,
                        "milliseconds": u64::try_from(step.took.as_millis()).unwrap_or(u64::MAX),
                    })
                })
                .collect()
        };
        let seals: Vec<_> = self
            .walks
            .iter()
            .map(|walk| {
                json!({
                    "name": walk.seal,
                    "provider": walk.provider,
                    "key": walk.key,
                    "ok": walk.failed().is_none(),
                    "steps": steps(walk),
                })
            })
            .collect();
        json!({
            "ok": self.is_well(),
            "object": self.of,
            "fault": self.fault.as_ref().map(fault),
            "seals": seals,
            "operator": self.operator.as_ref().map(|(ready, reason, message)| {
                json!({"ready": ready, "reason": reason, "message": message})
            }),
        })
    }

    pub(super) fn text(&self) -> String {
        let mut out = format!("{}\n", self.of);
        // Writing to a String cannot fail.
        if let Some(fault) = &self.fault {
            let _ = writeln!(out, "  ✗ {}\n{}", fault.reason, finding(fault, 4));
        }
        for walk in &self.walks {
            let _ = writeln!(out, "  seal {} ({} {})", walk.seal, walk.provider, walk.key);
            for step in &walk.steps {
                let (mark, said) = match &step.outcome {
                    Outcome::Well(seen) => ('✓', seen.as_str()),
                    Outcome::Note(seen) => ('!', seen.as_str()),
                    Outcome::Skipped(why) => ('-', why.as_str()),
                    Outcome::Failed(fault) => ('✗', fault.reason.as_str()),
                };
                let _ = writeln!(
                    out,
                    "    {mark} {:<12} {:>6} ms  {said}",
                    step.name,
                    step.took.as_millis()
                );
                if let Outcome::Failed(fault) = &step.outcome {
                    let _ = writeln!(out, "{}", finding(fault, 6));
                }
            }
        }
        if let Some((ready, reason, message)) = &self.operator {
            let _ = writeln!(out, "  the operator says: Ready={ready}, {reason}: {message}");
        }
        let failed = self.walks.iter().filter(|walk| walk.failed().is_some()).count();
        let verdict = match (self.is_well(), failed) {
            (true, _) => "well: every step to every key was taken".to_owned(),
            (false, 0) => "not well".to_owned(),
            (false, failed) => format!("not well: {failed} of {} seals cannot be used", self.walks.len()),
        };
        let _ = writeln!(out, "{verdict}");
        out
    }
}

/// The sentence of a fault, and where more is said about its reason.
fn finding(fault: &Fault, indent: usize) -> String {
    let margin = " ".repeat(indent);
    format!(
        "{margin}{}\n{margin}more: docs/reasons.md#{}",
        fault.message,
        fault.reason.as_str().to_ascii_lowercase()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Reason;

    fn report() -> Report {
        let step = |name, outcome, ms| Step {
            name,
            outcome,
            took: Duration::from_millis(ms),
        };
        let fault = Fault::denied(Reason::AccessDenied, "the identity may not kms:Decrypt; allow it");
        Report {
            of: "billing/app".into(),
            fault: None,
            walks: vec![
                Walk {
                    seal: "aws".into(),
                    provider: "awskms",
                    key: "alias/a".into(),
                    steps: vec![
                        step("endpoint", Outcome::Well("kms.eu-west-1.amazonaws.com".into()), 0),
                        step("key", Outcome::Note("may not be described".into()), 12),
                        step("open", Outcome::Failed(fault), 34),
                    ],
                },
                Walk {
                    seal: "oci".into(),
                    provider: "ocikms",
                    key: "ocid1.key.oc1.iad.v.k".into(),
                    steps: vec![step(
                        "open",
                        Outcome::Skipped("no copy names this seal".into()),
                        0,
                    )],
                },
            ],
            operator: Some(("False".into(), "AccessDenied".into(), "seal \"aws\": …".into())),
        }
    }

    #[test]
    fn a_stranger_reads_where_it_ends_and_what_mends_it() {
        insta::assert_snapshot!(report().text(), @r#"
        billing/app
          seal aws (awskms alias/a)
            ✓ endpoint          0 ms  kms.eu-west-1.amazonaws.com
            ! key              12 ms  may not be described
            ✗ open             34 ms  AccessDenied
              the identity may not kms:Decrypt; allow it
              more: docs/reasons.md#accessdenied
          seal oci (ocikms ocid1.key.oc1.iad.v.k)
            - open              0 ms  no copy names this seal
          the operator says: Ready=False, AccessDenied: seal "aws": …
        not well: 1 of 2 seals cannot be used
        "#);
    }

    #[test]
    fn a_program_reads_the_same() {
        let read = report().json();
        assert_eq!(read["ok"], false);
        assert_eq!(read["seals"][0]["steps"][2]["reason"], "AccessDenied");
        assert_eq!(read["seals"][0]["steps"][1]["result"], "note");
        assert_eq!(read["seals"][1]["ok"], true);
        assert_eq!(read["operator"]["ready"], "False");
    }
}
