//! ManagedKeys offline: schema and rules, and what would be brought where.

use serde_json::json;

use super::{Checked, Well, indented, read, told};
use crate::{
    api::{self, ManagedKey},
    cli::manifest::Object,
    seal::{
        managed::{self, standard_alias},
        store::name_of,
    },
};

/// Schema first; the rules only where the schema is kept.
pub(super) fn check(object: &Object) -> Checked {
    let key: ManagedKey = read(object, &api::crds()[1])?;
    let wanted = managed::rules(&key).map_err(|fault| told("", fault.to_string()))?;
    let name = object.name().unwrap_or_default();
    let spec = &key.spec;
    let store = name_of(api::MANAGED_KIND, name);
    let mut lines = Vec::new();
    if spec.suspend {
        lines.push("suspended: the operator does nothing for it".to_owned());
    }
    lines.push(format!(
        "material: {} for {}, {} and wrapped under every enabled seal of SealConfig {} in Secret {store}",
        spec.type_.as_str(),
        spec.usage.as_str(),
        if spec.material.generate.is_some() {
            "made by the operator"
        } else {
            "brought"
        },
        spec.seal_config_ref.name
    ));
    for to in &wanted {
        let mut aliases = vec![standard_alias(name, 0).trim_end_matches('0').to_owned() + "<time>"];
        aliases.extend(to.alias.clone());
        let replicas: Vec<_> = to.replica_regions.iter().map(String::as_str).collect();
        lines.push(format!(
            "distribution {}: a key of AWS KMS for each version in {}{}, behind {}",
            to.name,
            to.region,
            match (to.multi_region, replicas.is_empty()) {
                (false, _) => String::new(),
                (true, true) => ", multi-Region".to_owned(),
                (true, false) => format!(", with replicas in {}", replicas.join(", ")),
            },
            aliases.join(" and ")
        ));
    }
    lines.push(format!("when it goes: {}", spec.deletion.policy.as_str()));
    let distributions: Vec<_> = wanted
        .iter()
        .map(|to| {
            json!({
                "name": to.name, "region": to.region, "multiRegion": to.multi_region, "replicaRegions": to.replica_regions,
                "aliasName": to.alias,
            })
        })
        .collect();
    Ok(Well {
        text: indented(lines.iter()),
        json: json!({
            "type": spec.type_.as_str(), "usage": spec.usage.as_str(), "sealConfig": spec.seal_config_ref.name,
            "store": store, "distributions": distributions, "deletion": spec.deletion.policy.as_str(),
        }),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cli::manifest::API_VERSION;

    fn of(change: impl FnOnce(&mut Value)) -> Checked {
        let mut value = json!({
            "apiVersion": API_VERSION, "kind": "ManagedKey", "metadata": {"name": "pay", "namespace": "n"},
            "spec": {
                "type": "aes256-gcm96", "usage": "EncryptDecrypt", "material": {"generate": {}},
                "sealConfigRef": {"name": "platform"},
                "distributions": [{"name": "eu", "awskms": {"region": "eu-west-1", "aliasName": "alias/pay"}}],
            },
        });
        change(&mut value);
        check(&Object {
            place: "test".into(),
            value,
        })
    }

    #[test]
    fn the_plan_names_store_regions_and_aliases() {
        let well = of(|_| {}).unwrap_or_else(|problems| panic!("{problems:?}"));
        for fragment in [
            "pay.managedkey.wrapped",
            "eu-west-1",
            "alias/hashicorp/pay-<time>",
            "alias/pay",
            "Retain",
        ] {
            assert!(well.text.contains(fragment), "{fragment}: {}", well.text);
        }
        assert_eq!(well.json["distributions"][0]["region"], "eu-west-1");
    }

    #[test]
    fn what_the_apiserver_would_refuse_is_refused() {
        let refused: Vec<(&str, Checked)> = vec![
            ("usage", of(|v| v["spec"]["usage"] = json!("SignVerify"))),
            (
                "both",
                of(|v| v["spec"]["material"]["wrapped"] = json!([{"seal": "aws", "inline": "AAAA"}])),
            ),
            ("a dot", of(|v| v["metadata"]["name"] = json!("a.b"))),
            (
                "region",
                of(|v| v["spec"]["distributions"][0]["awskms"]["region"] = json!("eu.west")),
            ),
            (
                "replicas",
                of(|v| v["spec"]["distributions"][0]["awskms"]["replicaRegions"] = json!(["us-east-1"])),
            ),
            (
                "alias",
                of(|v| v["spec"]["distributions"][0]["awskms"]["aliasName"] = json!("alias/aws/x")),
            ),
        ];
        for (what, checked) in refused {
            assert!(checked.is_err(), "{what}");
        }
    }
}
