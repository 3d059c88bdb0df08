//! What the operator's flags and environment say about AWS.

use std::{fmt, sync::Arc, time::SystemTime};

use super::operator_identity::Environment;
use crate::{
    provider::{Clock, Timeouts, pace::Pace},
    seal::{KMS_REQUESTS_PER_SECOND, endpoint::EndpointPolicy},
};

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
    /// How fast the KMS is asked.
    pub(crate) pace: Arc<Pace>,
}

impl Settings {
    /// With the bounds in time and the clock of a real process.
    pub fn new(binding_domain: String, endpoints: EndpointPolicy, environment: Environment) -> Self {
        Self {
            binding_domain,
            endpoints,
            environment,
            timeouts: Timeouts::default(),
            clock: Arc::new(SystemTime::now),
            pace: Pace::new(KMS_REQUESTS_PER_SECOND),
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
