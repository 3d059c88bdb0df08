//! SealConfigs as they are watched, and kept between reconciles: as packed text, which takes a tenth of what they take when
//! they are read.

use std::{borrow::Cow, fmt, sync::Arc};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, ResourceExt};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::{memories::Object, packed::Packed, told};
use crate::api::{SealConfig, UnsealSpec};

/// What kubectl leaves behind: the whole object once more.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// A SealConfig whose spec and status have not been read yet, and may not be readable.
#[derive(Clone)]
pub struct Kept {
    metadata: ObjectMeta,
    spec: String,
    status: Option<Box<str>>,
}

/// Between the texts of an object: JSON's own line ends are escaped.
const END: char = '\n';

impl Kept {
    /// The whole object; `None` = this version cannot read it. The apiserver lets no such object in, but an older one may
    /// have.
    pub fn read(&self) -> Option<SealConfig> {
        Some(SealConfig {
            metadata: self.metadata.clone(),
            spec: serde_json::from_str(&self.spec).ok()?,
            status: match &self.status {
                Some(status) => serde_json::from_str(status).ok()?,
                None => None,
            },
        })
    }

    /// The servers that it unseals.
    pub fn unseal(&self) -> Option<UnsealSpec> {
        #[derive(Deserialize)]
        struct Part {
            unseal: Option<UnsealSpec>,
        }
        // Most have none, and need not be read to know.
        if !self.spec.contains("\"unseal\"") {
            return None;
        }
        serde_json::from_str::<Part>(&self.spec).ok()?.unseal
    }
}

impl<'de> Deserialize<'de> for Kept {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Whole {
            metadata: ObjectMeta,
            #[serde(default)]
            spec: Value,
            #[serde(default)]
            status: Option<Value>,
        }
        let Whole {
            mut metadata,
            spec,
            status,
        } = Whole::deserialize(deserializer)?;
        metadata.managed_fields = None;
        if let Some(annotations) = &mut metadata.annotations {
            annotations.remove(LAST_APPLIED);
            if annotations.is_empty() {
                metadata.annotations = None;
            }
        }
        Ok(Self {
            metadata,
            spec: spec.to_string(),
            status: status.as_ref().map(told::text),
        })
    }
}

impl Object for Kept {
    type Kept = Packed;

    fn keep(self: &Arc<Self>) -> Packed {
        let mut text = serde_json::to_string(&self.metadata).unwrap_or_default();
        for part in [Some(self.spec.as_str()), self.status.as_deref()]
            .into_iter()
            .flatten()
        {
            text.push(END);
            text.push_str(part);
        }
        Packed::new(&text)
    }

    fn kept(kept: &Packed) -> Arc<Self> {
        let text = kept.text();
        let mut parts = text.splitn(3, END);
        let metadata = serde_json::from_str(parts.next().unwrap_or_default()).unwrap_or_default();
        Arc::new(Self {
            metadata,
            spec: parts.next().unwrap_or_default().to_owned(),
            status: parts.next().map(Into::into),
        })
    }

    fn status_text(&self) -> Option<Cow<'_, str>> {
        self.status.as_deref().map(Cow::Borrowed)
    }
}

/// Its name: what it holds is nobody's to see.
impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let namespace = self.metadata.namespace.as_deref().unwrap_or_default();
        write!(f, "SealConfig {namespace}/{}", self.name_any())
    }
}

impl Resource for Kept {
    type DynamicType = ();
    type Scope = <SealConfig as Resource>::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        SealConfig::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        SealConfig::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        SealConfig::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        SealConfig::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(object: Value) -> Kept {
        serde_json::from_value(object).unwrap()
    }

    fn object() -> Value {
        serde_json::json!({
            "apiVersion": "autounseal.dev/v1alpha1", "kind": "SealConfig",
            "metadata": {
                "name": "c", "namespace": "n", "managedFields": [{"manager": "m"}],
                "annotations": {LAST_APPLIED: "{}"},
            },
            "spec": {
                "seals": [{"name": "aws", "awskms": {"kmsKeyID": "alias/a"}}],
                "keys": [{"name": "k", "wrapped": [{"seal": "aws", "inline": "c2VjcmV0"}]}],
            },
            "status": {"observedGeneration": 3},
        })
    }

    #[test]
    fn what_is_kept_is_read_as_it_came() {
        let kept = Kept::kept(&Arc::new(kept(object())).keep());
        let read = kept.read().unwrap();
        let mut direct: SealConfig = serde_json::from_value(object()).unwrap();
        direct.metadata.managed_fields = None;
        direct.metadata.annotations = None;
        assert_eq!(
            serde_json::to_value(read).unwrap(),
            serde_json::to_value(direct).unwrap()
        );
        assert!(kept.unseal().is_none());
        assert_eq!(format!("{kept:?}"), "SealConfig n/c");
    }

    #[test]
    fn what_cannot_be_read_is_kept_all_the_same() {
        let mut other = object();
        other["spec"] = serde_json::json!({"seals": "\n"});
        let kept = Kept::kept(&Arc::new(kept(other)).keep());
        assert_eq!(kept.name_any(), "c");
        assert!(kept.read().is_none());
        assert_eq!(kept.status_text().as_deref(), Some(r#"{"observedGeneration":3}"#));
    }
}
