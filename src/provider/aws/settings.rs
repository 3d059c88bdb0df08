//! What the operator's flags and environment say about AWS.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::operator_identity::Environment;
use crate::seal::endpoint::EndpointPolicy;

/// The time; replaced in tests.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// How long anything may take.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// A TCP connection.
    pub connect: Duration,
    /// One request with its answer.
    pub attempt: Duration,
    /// Everything for one operation, credentials included.
    pub operation: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            attempt: Duration::from_secs(5),
            operation: Duration::from_secs(10),
        }
    }
}

/// What the operator's flags and environment say.
#[derive(Clone)]
pub struct Settings {
    /// `--binding-domain`: part of the external id that the operator's identity sends.
    pub binding_domain: String,
    /// Endpoints that a cluster admin allows.
    pub endpoints: EndpointPolicy,
    /// What was read from the operator's environment.
    pub environment: Environment,
    /// Bounds in time.
    pub timeouts: Timeouts,
    /// The time.
    pub clock: Clock,
}

impl Settings {
    /// Settings from flags, and from the operator's environment.
    pub fn from_environment(binding_domain: String, allowed_endpoints: Vec<String>) -> Self {
        let environment = Environment::read();
        Self {
            binding_domain,
            endpoints: EndpointPolicy {
                environment: environment.endpoints.clone(),
                patterns: allowed_endpoints,
            },
            environment,
            timeouts: Timeouts::default(),
            clock: Arc::new(SystemTime::now),
        }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("binding_domain", &self.binding_domain)
            .field("endpoints", &self.endpoints)
            .field("environment", &self.environment)
            .field("timeouts", &self.timeouts)
            .finish_non_exhaustive()
    }
}
