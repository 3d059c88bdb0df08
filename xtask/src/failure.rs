//! How a command ends when it does not end well.

use std::fmt::Display;

/// Why a command stopped.
#[derive(Debug)]
pub enum Failure {
    /// A sentence for the developer, naming the fix where there is one.
    Said(String),
    /// A signal asked for the end; it decides the exit status.
    Interrupted(i32),
}

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Self::Said(message)
    }
}

impl From<&str> for Failure {
    fn from(message: &str) -> Self {
        Self::Said(message.to_owned())
    }
}

/// The result of anything that a command does.
pub type Outcome<T> = Result<T, Failure>;

/// Puts what was being done in front of an error of the system.
pub trait Doing<T> {
    /// `doing` completes the sentence "cannot …".
    fn doing(self, doing: impl Display) -> Outcome<T>;
}

impl<T, E: Display> Doing<T> for Result<T, E> {
    fn doing(self, doing: impl Display) -> Outcome<T> {
        self.map_err(|error| Failure::Said(format!("cannot {doing}: {error}")))
    }
}
