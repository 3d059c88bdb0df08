//! `autounseal version`.

use serde_json::json;

use super::{Done, Output, output};

/// Print the version.
#[derive(Debug, clap::Args)]
pub struct VersionArgs {
    /// How to print it
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// The commit that this was built from, where the build said so.
const COMMIT: Option<&str> = option_env!("AUTOUNSEAL_COMMIT");

pub(super) fn run(args: &VersionArgs) -> Done {
    let version = env!("CARGO_PKG_VERSION");
    match (args.output, COMMIT) {
        (Output::Json, commit) => {
            output::json(&json!({"version": version, "commit": commit}));
        }
        (Output::Text, Some(commit)) => {
            output::report(&format!("autounseal {version} (commit {commit})"));
        }
        (Output::Text, None) => output::report(&format!("autounseal {version}")),
    }
    Ok(())
}
