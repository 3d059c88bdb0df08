//! The SDK's clients, made for one identity, region and endpoint.

use std::sync::Arc;

use aws_config::{
    SdkConfig, retry::RetryConfig, stalled_stream_protection::StalledStreamProtectionConfig,
    timeout::TimeoutConfig,
};
use aws_sdk_kms::config::{IdentityCache, Region as SdkRegion};

use super::{
    Aws,
    identity::{Bridge, Source},
    operator_identity,
};
use crate::seal::{aws::Region, endpoint::AllowedEndpoint};

impl Aws {
    fn timeouts(&self) -> TimeoutConfig {
        TimeoutConfig::builder()
            .connect_timeout(self.settings.timeouts.connect)
            .operation_attempt_timeout(self.settings.timeouts.attempt)
            .operation_timeout(self.settings.timeouts.operation)
            .build()
    }

    pub(super) fn kms_client(
        &self,
        config: &SdkConfig,
        region: &Region,
        endpoint: Option<&AllowedEndpoint>,
        source: &Arc<Source>,
    ) -> aws_sdk_kms::Client {
        let trusted = endpoint.is_some_and(|endpoint| endpoint.trusted);
        let mut builder = aws_sdk_kms::config::Builder::from(config)
            .behavior_version(operator_identity::behavior())
            .region(SdkRegion::new(region.to_string()))
            .credentials_provider(Bridge(Arc::clone(source)))
            // The source is the cache, and it says why it failed.
            .identity_cache(IdentityCache::no_cache())
            .retry_config(RetryConfig::disabled())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .timeout_config(self.timeouts())
            .http_client(self.client(trusted));
        if let Some(endpoint) = endpoint {
            // A named endpoint is taken as it is; the SDK refuses one together with its FIPS or dual-stack rules.
            builder = builder
                .endpoint_url(&endpoint.url)
                .use_fips(false)
                .use_dual_stack(false);
        }
        aws_sdk_kms::Client::from_conf(builder.build())
    }

    pub(super) fn sts_client(
        &self,
        config: &SdkConfig,
        region: &Region,
        source: Option<Arc<Source>>,
    ) -> aws_sdk_sts::Client {
        let endpoint = self.settings.environment.sts_endpoint.as_deref();
        let mut builder = aws_sdk_sts::config::Builder::from(config)
            .behavior_version(operator_identity::behavior())
            .region(SdkRegion::new(region.to_string()))
            .identity_cache(IdentityCache::no_cache())
            .retry_config(RetryConfig::disabled())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .timeout_config(self.timeouts())
            .http_client(self.client(endpoint.is_some()));
        if let Some(source) = source {
            builder = builder.credentials_provider(Bridge(source));
        }
        if let Some(endpoint) = endpoint {
            builder = builder
                .endpoint_url(endpoint)
                .use_fips(false)
                .use_dual_stack(false);
        }
        aws_sdk_sts::Client::from_conf(builder.build())
    }

    fn client(&self, trusted: bool) -> aws_smithy_runtime_api::client::http::SharedHttpClient {
        if trusted {
            self.http.open.clone()
        } else {
            self.http.guarded.clone()
        }
    }
}
