//! The operator and its command line.

use std::process::ExitCode;

use autounseal::cli::{self, Cli};
use clap::Parser;

fn main() -> ExitCode {
    harden();
    let cli = Cli::parse();
    // With two providers linked in rustls would have to guess; there is one, and it is named.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => {
            let code = runtime.block_on(cli::run(cli));
            // Whoever must end ends now: a name that is still being resolved is not waited for.
            runtime.shutdown_background();
            code
        }
        Err(_) => ExitCode::from(1),
    }
}

/// Before anything is read: no core dump, no debugger, no reader of /proc/self/mem (security rule S13), and no page in swap.
fn harden() {
    use rustix::{
        mm::{MlockAllFlags, mlockall},
        process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit},
    };
    // Both are forbidden by nothing but a kernel that knows them not; then there is nothing to switch off.
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    let _ = setrlimit(
        Resource::Core,
        Rlimit {
            current: Some(0),
            maximum: Some(0),
        },
    );
    // Under a limit an allocation that goes past it would fail, hours later.
    if getrlimit(Resource::Memlock).current.is_none() {
        let _ = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT);
    }
}
