//! The operator and its command line.

use std::{process::ExitCode, thread};

use autounseal::cli::{self, Cli};
use clap::Parser;
use tikv_jemallocator::Jemalloc;

/// Chosen by measurement (docs/performance.md): between the pieces of thousands of objects glibc keeps as much again, and musl, for
/// which the image is built, has one lock for all threads. `.cargo/config.toml` says how it is set.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// A SealConfig takes 3 ms of a processor, so these do a thousand a second.
const MAX_THREADS: usize = 4;

fn main() -> ExitCode {
    harden();
    let cli = Cli::parse();
    // With two providers linked in rustls would have to guess; there is one, and it is named.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    // On a node of a hundred cores a thread for each would take memory, and have nothing to do.
    let threads = thread::available_parallelism()
        .map_or(1, usize::from)
        .min(MAX_THREADS);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build();
    match runtime {
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
