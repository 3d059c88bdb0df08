//! The place that an operator-made copy is bound to (security rule S2): a copy pasted elsewhere does not open.

use std::collections::BTreeMap;

/// The version of the binding itself.
const FORMAT: &str = "1";

/// What an item of a wrapped store is. An item of one class never opens as one of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A root key of a SealConfig.
    Key,
    /// An unseal share.
    UnsealShare,
    /// A share of a recovery key.
    RecoveryShare,
    /// A root token.
    RootToken,
    /// The material of a ManagedKey.
    Managed,
}

impl Class {
    /// The word in the binding.
    pub const fn as_str(self) -> &'static str {
        match self {
            Class::Key => "key",
            Class::UnsealShare => "unseal-share",
            Class::RecoveryShare => "recovery-share",
            Class::RootToken => "root-token",
            Class::Managed => "managed",
        }
    }
}

/// Where a copy belongs. Computed from the object in hand, never read from a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// Tells clusters apart that share a KMS key (flag `--binding-domain`).
    pub domain: &'a str,
    /// Kind of the object, `SealConfig`.
    pub kind: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// What the item is.
    pub class: Class,
    /// Name of the item: the key's name.
    pub item: &'a str,
    /// Version of the item, from 1.
    pub version: u32,
}

impl Place<'_> {
    /// The AWS encryption context, or OCI associatedData, of the data key.
    ///
    /// The namespace stands under the one name that users may set too, so that one condition of a key policy fits both.
    /// The other names are refused in user input, so no copy that a user brings can carry this whole context.
    pub fn context(&self) -> BTreeMap<String, String> {
        let names = [
            "binding",
            "domain",
            "kind",
            "bound-namespace",
            "name",
            "class",
            "item",
            "version",
        ];
        names
            .into_iter()
            .zip(self.parts())
            .map(|(name, value)| (format!("autounseal.dev/{name}"), value))
            .collect()
    }

    /// The additional data of the AES-GCM envelope: the same parts, each after its length (32 bits, big-endian).
    pub fn aad(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for part in self.parts() {
            // A name in Kubernetes is far under 4 GiB.
            out.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
            out.extend_from_slice(part.as_bytes());
        }
        out
    }

    fn parts(&self) -> [String; 8] {
        [
            FORMAT.to_owned(),
            self.domain.to_owned(),
            self.kind.to_owned(),
            self.namespace.to_owned(),
            self.name.to_owned(),
            self.class.as_str().to_owned(),
            self.item.to_owned(),
            self.version.to_string(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const PLACE: Place<'static> = Place {
        domain: "autounseal",
        kind: "SealConfig",
        namespace: "openbao",
        name: "openbao",
        class: Class::Key,
        item: "static",
        version: 1,
    };

    #[test]
    fn every_part_makes_another_context_and_another_aad() {
        let elsewhere = [
            PLACE,
            Place {
                domain: "other",
                ..PLACE
            },
            Place {
                kind: "ManagedKey",
                ..PLACE
            },
            Place {
                namespace: "apps",
                ..PLACE
            },
            Place { name: "bao", ..PLACE },
            Place {
                namespace: "openba",
                name: "oopenbao",
                ..PLACE
            },
            Place {
                class: Class::UnsealShare,
                ..PLACE
            },
            Place {
                item: "root",
                ..PLACE
            },
            Place { version: 2, ..PLACE },
        ];
        let contexts: BTreeSet<_> = elsewhere.iter().map(Place::context).collect();
        let aads: BTreeSet<_> = elsewhere.iter().map(Place::aad).collect();
        assert_eq!((contexts.len(), aads.len()), (elsewhere.len(), elsewhere.len()));
    }

    #[test]
    fn the_binding_never_changes_between_releases() {
        let context: Vec<_> = PLACE
            .context()
            .into_iter()
            .map(|(k, v)| format!("{k}={v}"))
            .collect();
        assert_eq!(
            context,
            [
                "autounseal.dev/binding=1",
                "autounseal.dev/bound-namespace=openbao",
                "autounseal.dev/class=key",
                "autounseal.dev/domain=autounseal",
                "autounseal.dev/item=static",
                "autounseal.dev/kind=SealConfig",
                "autounseal.dev/name=openbao",
                "autounseal.dev/version=1",
            ]
        );
        assert_eq!(
            PLACE.aad(),
            b"\0\0\0\x011\0\0\0\x0aautounseal\0\0\0\x0aSealConfig\0\0\0\x07openbao\0\0\0\x07openbao\0\0\0\x03key\0\0\0\x06static\0\0\0\x011"
        );
    }
}
